"""Rewriting source code: what it becomes, and that it does what it did with truenorm's classes."""

import textwrap

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

libcst = pytest.importorskip("libcst", reason="migrate-code needs LibCST")

from truenorm.tools.migrate_code.names import COVERED  # noqa: E402
from truenorm.tools.migrate_code.rewrite import rewrite  # noqa: E402

CASES = {
    "the one line": (
        """
        import tensorflow as tf
        import tensorflow_addons as tfa  # normalizations

        used = [tfa.layers.GroupNormalization(groups=5), tfa.rnn.LayerNormLSTMCell(4)]
        """,
        """
        import tensorflow as tf
        import truenorm as tfa  # normalizations

        used = [tfa.layers.GroupNormalization(groups=5), tfa.rnn.LayerNormLSTMCell(4)]
        """,
        [],
    ),
    "an import for loading models": (
        "import os, tensorflow_addons as tfa, sys\n",
        "import os, truenorm as tfa, sys\n",
        [],
    ),
    "covered and not covered": (
        """
        # the addons
        import tensorflow_addons as tfa  # noqa: E402
        used = [tfa.layers.TLU(), tfa.layers.GELU()]
        """,
        """
        # the addons
        import tensorflow_addons as tfa  # noqa: E402
        import truenorm
        used = [truenorm.layers.TLU(), tfa.layers.GELU()]
        """,
        ["4: tfa.layers.GELU: use keras.activations.gelu"],
    ),
    "nothing covered": (
        """
        import tensorflow_addons as tfa
        used = [tfa.optimizers.lamb.LAMB(), tfa.seq2seq.tile_batch]
        """,
        None,
        [
            "3: tfa.optimizers.LAMB: use keras.optimizers.Lamb (epsilon is 1e-7",
            "3: tfa.seq2seq.tile_batch: use keras.ops.repeat",
        ],
    ),
    "without as": (
        """
        import tensorflow_addons
        used = [tensorflow_addons.layers.TLU.from_config({})]
        """,
        """
        import truenorm
        used = [truenorm.layers.TLU.from_config({})]
        """,
        [],
    ),
    "dotted": (
        """
        import tensorflow_addons.layers
        import tensorflow_addons.rnn.layer_norm_lstm_cell
        import tensorflow_addons.layers.tlu as t
        used = [tensorflow_addons.layers.TLU(), t.TLU(),
                tensorflow_addons.rnn.layer_norm_lstm_cell.LayerNormLSTMCell(4)]
        """,
        """
        import truenorm.layers
        import truenorm.rnn
        import truenorm
        used = [truenorm.layers.TLU(), truenorm.layers.TLU(),
                truenorm.rnn.LayerNormLSTMCell(4)]
        """,
        [],
    ),
    "dotted, partly covered": (
        """
        import tensorflow_addons.layers
        import tensorflow_addons.optimizers
        used = [tensorflow_addons.layers.TLU(), tensorflow_addons.optimizers.Yogi()]
        """,
        """
        import tensorflow_addons.layers
        import truenorm
        import tensorflow_addons.optimizers
        used = [truenorm.layers.TLU(), tensorflow_addons.optimizers.Yogi()]
        """,
        ["4: tfa.optimizers.Yogi: Keras 3 has nothing in its place"],
    ),
    "a part": (
        """
        from tensorflow_addons import layers, rnn as cells
        from tensorflow_addons import optimizers
        used = [layers.TLU(), cells.LayerNormSimpleRNNCell(4), optimizers.Yogi()]
        """,
        """
        from truenorm import layers, rnn as cells
        from tensorflow_addons import optimizers
        used = [layers.TLU(), cells.LayerNormSimpleRNNCell(4), optimizers.Yogi()]
        """,
        ["4: tfa.optimizers.Yogi"],
    ),
    "a part that is partly covered": (
        """
        from tensorflow_addons import optimizers, layers as L
        used = [L.TLU(), L.GELU(), optimizers.Yogi()]
        """,
        """
        from tensorflow_addons import optimizers, layers as L
        import truenorm
        used = [truenorm.layers.TLU(), L.GELU(), optimizers.Yogi()]
        """,
        ["3: tfa.layers.GELU", "3: tfa.optimizers.Yogi"],
    ),
    "classes": (
        """
        from tensorflow_addons.layers import InstanceNormalization as IN, TLU
        from tensorflow_addons.layers.normalizations import GroupNormalization
        used = [IN(), TLU(), GroupNormalization()]
        """,
        """
        from truenorm.layers import InstanceNormalization as IN, TLU
        from truenorm.layers import GroupNormalization
        used = [IN(), TLU(), GroupNormalization()]
        """,
        [],
    ),
    "classes of both kinds": (
        """
        from tensorflow_addons.layers import (  # several
            GELU,  # smooth
            TLU as Threshold,  # with a learned threshold
            StochasticDepth
        )
        used = [GELU(), Threshold(), StochasticDepth()]
        """,
        """
        from tensorflow_addons.layers import (  # several
            GELU,  # smooth
            StochasticDepth
        )
        from truenorm.layers import (  # several
            TLU as Threshold,  # with a learned threshold
        )
        used = [GELU(), Threshold(), StochasticDepth()]
        """,
        [
            "7: tfa.layers.GELU",
            "7: tfa.layers.StochasticDepth: use keras.layers.Dropout",
        ],
    ),
    "an optional import": (
        """
        try:
            import tensorflow_addons as tfa
        except ImportError:
            tfa = None
        used = [] if tfa is None else [tfa.layers.TLU()]
        """,
        """
        try:
            import truenorm as tfa
        except ImportError:
            tfa = None
        used = [] if tfa is None else [tfa.layers.TLU()]
        """,
        [],
    ),
    "an optional import without as": (
        """
        try: import tensorflow_addons
        except ImportError: tensorflow_addons = None
        used = [tensorflow_addons.layers.TLU()]
        """,
        """
        try: import truenorm as tensorflow_addons
        except ImportError: tensorflow_addons = None
        used = [tensorflow_addons.layers.TLU()]
        """,
        [],
    ),
    "in a function, on one line, shadowed": (
        """
        def f(tfa):
            return tfa.layers.TLU
        def g():
            if True: import tensorflow_addons as tfa; x = tfa.layers.TLU(); y = tfa.layers.GELU
            return [x, y]
        def h():
            import tensorflow_addons as tfa
            return [lambda: tfa.layers.TLU()]
        used = [*g(), h()[0]()]
        """,
        """
        def f(tfa):
            return tfa.layers.TLU
        def g():
            if True: import tensorflow_addons as tfa; import truenorm; \
x = truenorm.layers.TLU(); y = tfa.layers.GELU
            return [x, y]
        def h():
            import truenorm as tfa
            return [lambda: tfa.layers.TLU()]
        used = [*g(), h()[0]()]
        """,
        ["5: tfa.layers.GELU"],
    ),
    "the module as a value": (
        """
        import tensorflow_addons as tfa
        used = [vars(tfa.layers)["TLU"], tfa.layers.TLU]
        """,
        """
        import tensorflow_addons as tfa
        import truenorm
        used = [vars(tfa.layers)["TLU"], truenorm.layers.TLU]
        """,
        ["3: tfa.layers: the module is used as a value and cannot be followed"],
    ),
    "a name that is taken": (
        """
        import tensorflow_addons as tfa
        truenorm = "steady"
        used = [tfa.layers.TLU(), tfa.layers.GELU()]
        """,
        """
        import tensorflow_addons as tfa
        import truenorm as truenorm_
        truenorm = "steady"
        used = [truenorm_.layers.TLU(), tfa.layers.GELU()]
        """,
        ["4: tfa.layers.GELU"],
    ),
    "truenorm is there already": (
        """
        import truenorm
        import tensorflow_addons as tfa
        used = [tfa.layers.TLU(), tfa.layers.GELU(), truenorm.layers.TLU]
        """,
        """
        import truenorm
        import tensorflow_addons as tfa
        used = [truenorm.layers.TLU(), tfa.layers.GELU(), truenorm.layers.TLU]
        """,
        ["4: tfa.layers.GELU"],
    ),
    "bound elsewhere too": (
        """
        import tensorflow_addons as tfa
        if not tfa:
            import mine as tfa
        used = [tfa.layers.TLU(), tfa.layers.GELU()]
        """,
        None,
        [
            "3: tfa: the module is used as a value",
            "5: tfa.layers.GELU",
            "5: tfa.layers.TLU: left as it is, as the name is bound on line 4 too",
        ],
    ),
    "global": (
        """
        def load():
            global tfa
            import tensorflow_addons as tfa
        load()
        used = [tfa.layers.TLU(), tfa.layers.GELU()]
        """,
        None,
        ["6: tfa.layers.GELU", "6: tfa.layers.TLU: left as it is, as the name is declared global"],
    ),
    "annotations in quotes": (
        """
        import tensorflow_addons
        def f(x: "tensorflow_addons.layers.TLU", y: "list[tensorflow_addons.optimizers.Yogi]"):
            return tensorflow_addons.layers.TLU()
        used = [f(1, 2)]
        """,
        """
        import tensorflow_addons
        import truenorm
        def f(x: "tensorflow_addons.layers.TLU", y: "list[tensorflow_addons.optimizers.Yogi]"):
            return truenorm.layers.TLU()
        used = [f(1, 2)]
        """,
        ["3: tfa.layers.TLU: left as it is, in a string", "3: tfa.optimizers.Yogi"],
    ),
    "a star, names in strings, what is not needed": (
        """
        from tensorflow_addons.layers import *
        import tensorflow_addons as tfa
        import importlib
        tfa.register_all()
        used = [TLU(), importlib.import_module("tensorflow_addons.layers").TLU, "Addons>gelu"]
        """,
        """
        from truenorm.layers import TLU
        import tensorflow_addons as tfa
        import importlib
        tfa.register_all()
        used = [TLU(), importlib.import_module("truenorm.layers").TLU, "Addons>gelu"]
        """,
        [
            "5: tfa.register_all: not needed",
            "6: 'Addons>gelu': use keras.activations.gelu",
        ],
    ),
    "a star with names that are not known, and strings that are not followed": (
        """
        from tensorflow_addons.layers import *
        import importlib
        used = [importlib.import_module("tensorflow_addons.layers")]
        def f():
            return TLU(), unknown
        """,
        None,
        [
            "2: from tensorflow_addons.layers import *: import the names that are used",
            "4: 'tensorflow_addons.layers': a name in a string",
        ],
    ),
    "another name for a module": (
        """
        import tensorflow_addons as tfa
        L = tfa.layers
        M = L
        used = [L.TLU(), M.GroupNormalization(2), getattr(tfa.layers, "TLU")]
        """,
        """
        import truenorm as tfa
        L = tfa.layers
        M = L
        used = [L.TLU(), M.GroupNormalization(2), getattr(tfa.layers, "TLU")]
        """,
        [],
    ),
    "another name, partly covered": (
        """
        import tensorflow_addons as tfa
        addons = tfa
        L = addons.layers
        O = tfa.optimizers
        used = [L.TLU(), L.GELU(), O.Yogi(), getattr(L, "TLU"), addons.layers.TLU]
        """,
        """
        import tensorflow_addons as tfa
        import truenorm
        addons = tfa
        L = addons.layers
        O = tfa.optimizers
        used = [truenorm.layers.TLU(), L.GELU(), O.Yogi(), getattr(truenorm.layers, "TLU"), \
truenorm.layers.TLU]
        """,
        ["6: tfa.layers.GELU", "6: tfa.optimizers.Yogi"],
    ),
    "another name for a module below layers": (
        """
        import tensorflow_addons as tfa
        tlu = tfa.layers.tlu
        def f():
            cells = tfa.rnn
            return cells.layer_norm_lstm_cell.LayerNormLSTMCell(4)
        used = [tlu.TLU(), f()]
        """,
        """
        import truenorm
        tlu = truenorm.layers
        def f():
            cells = truenorm.rnn
            return truenorm.rnn.LayerNormLSTMCell(4)
        used = [tlu.TLU(), f()]
        """,
        [],
    ),
    "a name that is given twice": (
        """
        import tensorflow_addons as tfa
        L = tfa.layers
        L = tfa.rnn
        used = [L.LayerNormLSTMCell(4)]
        """,
        None,
        ["3: tfa.layers: the module is used as a value", "4: tfa.rnn: the module is used"],
    ),
    "imports that are calls": (
        """
        import importlib
        tfa = __import__("tensorflow_addons")
        L = importlib.import_module('tensorflow_addons.layers')
        O = importlib.import_module("tensorflow_addons.optimizers")
        used = [tfa.layers.TLU(), L.TLU(), O.Yogi]
        """,
        """
        import importlib
        tfa = __import__("truenorm")
        L = importlib.import_module('truenorm.layers')
        O = importlib.import_module("tensorflow_addons.optimizers")
        used = [tfa.layers.TLU(), L.TLU(), O.Yogi]
        """,
        ["5: 'tensorflow_addons.optimizers': a name in a string", "6: tfa.optimizers.Yogi"],
    ),
    "activations": (
        """
        import tensorflow_addons as tfa
        from tensorflow_addons.activations import softshrink as soft, lisht
        from tensorflow_addons import activations
        A = tfa.activations
        def f(x, y):
            x = tfa.activations.gelu(x) + tfa.activations.gelu(x, approximate=False)
            return A.lisht(x) - activations.mish(x + y) * soft(x) + lisht(-x)
        used = [tfa.layers.TLU()]
        """,
        """
        import truenorm
        import keras
        A = keras.activations
        def f(x, y):
            x = keras.activations.gelu(x, approximate=True) + \
keras.activations.gelu(x, approximate=False)
            return (x * keras.ops.tanh(x)) - \
(lambda x: x * keras.ops.tanh(keras.ops.softplus(x)))(x + y) * \
keras.activations.soft_shrink(x) + (lambda x: x * keras.ops.tanh(x))(-x)
        used = [truenorm.layers.TLU()]
        """,
        [],
    ),
    "activations with arguments that Keras has not": (
        """
        from tensorflow import keras
        import tensorflow_addons as tfa
        def f(x):
            return tfa.activations.softshrink(x, -1, 1), tfa.activations.sparsemax(logits=x)
        used = [tfa.layers.TLU(activation=tfa.activations.mish, name="Addons>mish")]
        layer = keras.layers.Dense(2, activation="Addons>softshrink")
        """,
        """
        from tensorflow import keras
        import tensorflow_addons as tfa
        import truenorm
        def f(x):
            return tfa.activations.softshrink(x, -1, 1), tfa.activations.sparsemax(logits=x)
        used = [truenorm.layers.TLU(activation=keras.activations.mish, name="Addons>mish")]
        layer = keras.layers.Dense(2, activation="soft_shrink")
        """,
        [
            "5: tfa.activations.softshrink: use keras.activations.soft_shrink (one threshold",
            "5: tfa.activations.sparsemax: use keras.activations.sparsemax",
            "6: 'Addons>mish': use keras.activations.mish",
        ],
    ),
    "activations where keras is another name": (
        """
        from keras import backend as keras
        import tensorflow_addons as tfa
        used = []
        layer = Dense(2, activation=tfa.activations.mish)
        """,
        """
        from keras import backend as keras
        import keras as keras_
        used = []
        layer = Dense(2, activation=keras_.activations.mish)
        """,
        [],
    ),
    "keras_contrib": (
        """
        from keras_contrib.layers import InstanceNormalization as IN, CRF
        def f(x):
            return IN(axis=3)(x), IN()(x)
        used = []
        """,
        None,
        [
            "2: keras_contrib.layers.CRF: truenorm and Keras 3 have nothing of this name",
            "2: keras_contrib.layers.InstanceNormalization: import truenorm instead",
            "4: keras_contrib InstanceNormalization: without an axis",
            "4: keras_contrib InstanceNormalization: write truenorm.InstanceNormalization(axis=3, ",
        ],
    ),
    "Keras 2": (
        """
        import os
        os.environ["TF_USE_LEGACY_KERAS"] = "1"
        import tensorflow_addons as tfa
        used = [f"{tfa.layers.TLU()}"]
        """,
        """
        import os
        os.environ["TF_USE_LEGACY_KERAS"] = "1"
        import truenorm as tfa
        used = [f"{tfa.layers.TLU()}"]
        """,
        ["3: Keras 2: truenorm's layers are layers of Keras 3"],
    ),
}
# Not run: they import what is not there.
NOT_RUN = {"the one line", "an import for loading models", "bound elsewhere too"} | {
    "activations",  # of TensorFlow Addons, and of Keras where they are rewritten
    "activations with arguments that Keras has not",
    "a star with names that are not known, and strings that are not followed",
    "activations where keras is another name",
    "keras_contrib",
}


@pytest.mark.parametrize("case", CASES)
def test_what_code_becomes(case):
    before, after, uses = CASES[case]
    before = textwrap.dedent(before)
    after = before if after is None else textwrap.dedent(after)
    result = rewrite(before.encode())
    assert result.source.decode() == after
    assert len(result.uses) == len(uses)
    for shown, expected in zip(map(str, result.uses), uses, strict=True):
        assert shown.startswith(expected)


@pytest.mark.parametrize("case", [case for case in CASES if case not in NOT_RUN])
def test_the_new_code_runs_and_takes_the_same_names(case, run):
    source = textwrap.dedent(CASES[case][0]).encode()
    before, after = run(source), run(rewrite(source).source)
    assert [repr(one)[4:] for one in after] == [repr(one)[4:] for one in before]


@pytest.mark.parametrize("case", CASES)
def test_rewriting_twice_is_rewriting_once(case):
    once = rewrite(textwrap.dedent(CASES[case][0]).encode())
    twice = rewrite(once.source)
    assert twice.source == once.source
    # Lines move; what is left to the user does not.
    assert [(use.name, use.advice) for use in twice.uses if "line" not in use.advice] == [
        (use.name, use.advice) for use in once.uses if "line" not in use.advice
    ]


# A way to import, and how a class of a part is written after it.
IMPORTS = [
    ("import tensorflow_addons as a{n}", "a{n}.{part}.{name}"),
    ("import tensorflow_addons", "tensorflow_addons.{part}.{name}"),
    ("import tensorflow_addons.{part}", "tensorflow_addons.{part}.{name}"),
    ("import tensorflow_addons.{part} as b{n}", "b{n}.{name}"),
    ("from tensorflow_addons import {part}", "{part}.{name}"),
    ("from tensorflow_addons import {part} as c{n}", "c{n}.{name}"),
    ("from tensorflow_addons.{part} import {name}", "{name}"),
    ("from tensorflow_addons.{part} import {name} as d{n}", "d{n}"),
    ("from tensorflow_addons.{part} import ({name},\n    {name} as e{n})", "e{n}"),
]
NAMES = [
    ("layers", "TLU"),
    ("layers", "InstanceNormalization"),
    ("layers", "GELU"),
    ("rnn", "LayerNormLSTMCell"),
    ("optimizers", "Yogi"),
]
PLACES = [
    "{imports}\nused += [{use}()]",
    "def f():\n    {indented}\n    return {use}()\nused += [f()]",
    "if True:\n    {indented}\nused += [[{use} for _ in range(1)][0]]",
    "try:\n    {indented}\nexcept ImportError:\n    raise\nused += [(lambda x: x)({use})]",
    "{imports}; used += [{use}]",
    "class A:\n    {indented}\n    used += [{use}()]",
]


@st.composite
def programs(draw):
    lines = ["used = []"]
    for n in range(draw(st.integers(1, 4))):
        part, name = draw(st.sampled_from(NAMES))
        statement, use = draw(st.sampled_from(IMPORTS))
        values = {"n": n, "part": part, "name": name}
        statement, use = statement.format(**values), use.format(**values)
        place = draw(st.sampled_from(PLACES))
        indented = statement.replace("\n", "\n    ")
        lines.append(place.format(imports=statement, indented=indented, use=use))
        if draw(st.booleans()) and "def f" not in place and "class A" not in place:
            lines.append(f"def g{n}():\n    return {use}()\nused += [g{n}()]")
    return "\n".join(lines) + "\n"


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.generate],
)
@given(source=programs())
def test_random_programs_take_truenorm_where_it_covers_and_nothing_else(source, run):
    result = rewrite(source.encode())
    before, after = run(source), run(result.source)
    for old, new in zip(before, after, strict=True):
        part, name = old.name.split(".")
        assert new.name == old.name
        assert new.package == ("new" if name in COVERED.get(part, ()) else "old")
    assert rewrite(result.source).source == result.source
    everything_covered = all(one.package == "new" for one in after)
    assert everything_covered == (not result.uses)
    assert everything_covered == (b"tensorflow_addons" not in result.source)


@pytest.mark.parametrize(
    "source",
    [
        b"\xef\xbb\xbfimport tensorflow_addons as tfa\r\nx = '\xc3\xa9'\r\n",
        b"# -*- coding: latin-1 -*-\nimport tensorflow_addons as tfa  # \xe9t\xe9",
        b"import tensorflow_addons as tfa\n\x0c\nx = 1 \\\n  + 2\r\n\tif_ = 3\n".replace(
            b"\t", b""
        ),
        b"if 1:\n\timport tensorflow_addons as tfa\n\tx = '\\d'\n",
    ],
    ids=["BOM and CRLF", "latin-1", "mixed line ends", "tabs"],
)
def test_bytes_that_do_not_change_stay(source):
    new = rewrite(source).source
    assert new == source.replace(b"tensorflow_addons", b"truenorm")


def test_new_lines_end_as_the_others_do():
    source = b"import tensorflow_addons as tfa\r\n[tfa.layers.TLU, tfa.layers.GELU]\r\n"
    assert rewrite(source).source == (
        b"import tensorflow_addons as tfa\r\nimport truenorm\r\n"
        b"[truenorm.layers.TLU, tfa.layers.GELU]\r\n"
    )
