"""The activations of TensorFlow Addons that Keras 3 has exactly, and how to write them."""

import libcst as cst

# Those with an equal of Keras, and the arguments that both have, the input being the first.
NAMES = {
    "hardshrink": "hard_shrink",
    "mish": "mish",
    "softshrink": "soft_shrink",
    "sparsemax": "sparsemax",
    "tanhshrink": "tanh_shrink",
}
SHARED = {"gelu": ("approximate",), "sparsemax": ("axis",)}
# Those that are written out: Addons' gelu approximates by default, and Keras' does not.
FORMULAS = {
    "gelu": "{keras}.activations.gelu({x}, approximate=True)",
    "lisht": "{x} * {keras}.ops.tanh({x})",
    "snake": "{x} + {keras}.ops.sin({x}) ** 2",
}
# In a layer's config a lambda is code, which Keras loads with safe_mode=False only.
LAMBDA = "now a lambda: to load a saved model without safe_mode=False, give the function a name"


def is_equal(path: tuple[str, ...], call: cst.Call | None) -> bool:
    """Whether Keras has what stands at a path below tensorflow_addons, with these arguments."""
    name = activation(path)
    if name is None:
        return False
    if call is None:
        return True
    if not call.args or any(argument.star for argument in call.args):
        return False
    shared = SHARED.get(name, ())
    first, *others = call.args
    return (
        (first.keyword is None or first.keyword.value == "x")
        and len(others) <= len(shared)
        and all(one.keyword is None or one.keyword.value in shared for one in others)
    )


def activation(path: tuple[str, ...]) -> str | None:
    """The activation at a path: tfa.activations.mish, or mish in a module of that name."""
    if len(path) == 2 or (len(path) == 3 and path[1] == path[2]):
        name = path[-1]
        if path[0] == "activations" and (name in NAMES or name in FORMULAS):
            return name
    return None


def function(name: str, keras: str) -> tuple[cst.BaseExpression, bool]:
    """The activation as a value, and whether it is a lambda."""
    if name in NAMES:
        return cst.parse_expression(f"{keras}.activations.{NAMES[name]}"), False
    return cst.parse_expression(f"(lambda x: {FORMULAS[name].format(keras=keras, x='x')})"), True


def call_of(name: str, call: cst.Call, keras: str) -> cst.BaseExpression | None:
    """What takes the place of a whole call, or None where only the function changes."""
    argument = call.args[0].value
    if name in FORMULAS and name != "gelu" and isinstance(argument, cst.Name):
        return cst.parse_expression(f"({FORMULAS[name].format(keras=keras, x=argument.value)})")
    return None
