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
# keras.activations.mish and sparsemax take no symbolic tensor, so calls of them are others.
CALLED = FORMULAS | {"mish": "{x} * {keras}.ops.tanh({keras}.ops.softplus({x}))"}
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


def function(name: str, keras: str, called: bool = False) -> tuple[cst.BaseExpression, bool]:
    """The activation as a value, or to be called, and whether it is a lambda."""
    if called and name == "sparsemax":
        return cst.parse_expression(f"{keras}.ops.sparsemax"), False
    formula = (CALLED if called else FORMULAS).get(name)
    if formula is None:
        return cst.parse_expression(f"{keras}.activations.{NAMES[name]}"), False
    return cst.parse_expression(f"(lambda x: {formula.format(keras=keras, x='x')})"), True


def call_of(name: str, call: cst.Call, keras: str) -> cst.BaseExpression | None:
    """What takes the place of a whole call, or None where only the function changes."""
    argument = call.args[0].value
    if name in CALLED and name != "gelu" and isinstance(argument, cst.Name):
        return cst.parse_expression(f"({CALLED[name].format(keras=keras, x=argument.value)})")
    return None
