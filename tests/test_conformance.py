"""The ONNX standard's own cases for these four operators, through `truenorm.ops`.

The data are the node tests of the ONNX project (Apache-2.0). ONNX puts channels first; its layer
and RMS normalization take every axis from `axis` on, the batch axis too where that is 0: such a
case gets one more leading axis here.
"""

import json
import pathlib

import numpy as np
import pytest
from keras import ops

import truenorm

DATA = pathlib.Path(__file__).parent / "data"
CASES = json.loads((DATA / "onnx_normalization_cases.json").read_text())


def outputs(case, x, scale, offset=None):
    attributes = case["attrs"]
    epsilon = attributes.get("epsilon", 1e-5)
    if case["op"] == "GroupNormalization":
        groups = attributes["num_groups"]
        return truenorm.ops.group_normalization(
            x, scale, offset, groups=groups, axis=1, epsilon=epsilon
        )
    if case["op"] == "InstanceNormalization":
        return truenorm.ops.instance_normalization(x, scale, offset, axis=1, epsilon=epsilon)
    axis = list(range(attributes.get("axis", -1) % x.ndim + 1, x.ndim + 1))
    if case["op"] == "LayerNormalization":
        y = truenorm.ops.layer_normalization(x[None], scale, offset, axis=axis, epsilon=epsilon)
    else:
        y = truenorm.ops.rms_normalization(x[None], scale, axis=axis, epsilon=epsilon)
    return y[0]


@pytest.mark.parametrize("name", CASES)
def test_onnx_case(name):
    case = CASES[name]
    with np.load(DATA / "onnx_normalization_cases.npz") as arrays:
        given = [arrays[key] for key in case["arrays"]["input"]]
        expected = arrays[case["arrays"]["output"][0]]
    y = ops.convert_to_numpy(outputs(case, *given))
    assert y.dtype == expected.dtype
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_all_four_operators_are_there():
    found = [case["op"] for case in CASES.values()]
    assert {op: found.count(op) for op in found} == {
        "GroupNormalization": 2,
        "InstanceNormalization": 2,
        "LayerNormalization": 19,
        "RMSNormalization": 19,
    }
