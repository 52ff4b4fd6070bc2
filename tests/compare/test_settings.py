import pytest

from truenorm.core.errors import InputError
from truenorm.tools.compare.settings import DEFAULTS, read, read_norms


def settings(**changed):
    return read(**{**DEFAULTS, **changed})


def test_model_fills_in_options_that_fit_it():
    tutorial = {norm.label: norm.options for norm in read_norms("none,group,layer", "tutorial")}
    assert tutorial == {"none": {}, "group": {"groups": 5, "axis": 3}, "layer": {"axis": 3}}
    assert read_norms("group", "rnn")[0].options == {"groups": 8}


def test_options_are_read_with_their_types_and_win_over_the_models():
    text = "group:epsilon=1e-5:groups=2:center=false,layer:axis=1+2+3,batch:momentum=0.9"
    group, layer, batch = read_norms(text, "tutorial")
    assert group.options == {"groups": 2, "axis": 3, "epsilon": 1e-5, "center": False}
    assert layer.options == {"axis": [1, 2, 3]}
    assert batch.options == {"axis": 3, "momentum": 0.9}
    # One order of the options, whichever the user chose: labels are file names.
    assert group.label == "group:groups=2:epsilon=1e-05:center=false"
    assert layer.label == "layer:axis=1+2+3"


def test_one_normalization_may_come_twice_with_different_options():
    labels = [norm.label for norm in read_norms("group:groups=2,group:groups=5", "tutorial")]
    assert labels == ["group:groups=2", "group:groups=5"]


def test_text_and_python_values_are_the_same_settings():
    text = settings(batch_sizes="2,8", seeds="0,7", epochs="3", norms="none,rms", train_size="90")
    values = settings(batch_sizes=[2, 8], seeds=[0, 7], epochs=3, norms=["none", "rms"],
                      train_size=90)  # fmt: skip
    assert text == values
    assert text.as_dict() == values.as_dict()


def test_a_number_of_seeds_counts_from_zero_and_a_list_names_them():
    assert settings(seeds=3).seeds == settings(seeds="3").seeds == (0, 1, 2)
    assert settings(seeds="3,").seeds == settings(seeds=[3]).seeds == (3,)
    assert settings(batch_sizes=4).batch_sizes == (4,)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"norms": "gruop"}, r"unknown normalization 'gruop'; did you mean 'group'\? Expected "
                             "one of none, batch, layer, instance, group, rms."),
        ({"norms": ""}, "unknown normalization ''; expected one of none"),
        ({"norms": []}, "norms is empty"),
        ({"norms": "group,group:groups=5"}, "'group' and 'group:groups=5' are the same one "
                                            r"\(groups=5, axis=3\)"),
        ({"norms": "none:axis=3"}, "'none' takes no options"),
        ({"norms": "layer:groups=3"}, "'layer' has no option 'groups'; .* axis, epsilon"),
        ({"norms": "group:group=3"}, "did you mean 'groups'"),
        ({"norms": "group:groups"}, "'groups' has no value; write groups=..."),
        ({"norms": "group:groups=2:groups=5"}, "given twice"),
        ({"norms": "group:groups=0"}, "groups=0 must be a positive integer, or -1"),
        ({"norms": "group:groups=two"}, "groups=two must be a positive integer"),
        ({"norms": "layer:axis=1-3"}, r"joined by \+ such as 1\+2\+3"),
        ({"norms": "rms:epsilon=-1"}, "epsilon=-1 must be a positive number"),
        ({"norms": "rms:epsilon=nan"}, "epsilon=nan must be a positive number"),
        ({"norms": "batch:momentum=9"}, "momentum=9 must be a number from 0 to 1"),
        ({"norms": "layer:center=no"}, "center=no must be true or false"),
        ({"norms": "layer:gamma_initializer=x"}, "must be one of zeros, ones"),
        ({"model": "tutorail"}, "unknown model 'tutorail'; did you mean 'tutorial'"),
        ({"train_on": "both"}, "train_on='both' is unknown; expected 'train' or 'test'"),
        ({"batch_sizes": "0"}, "batch_sizes=0 must be an integer of at least 1"),
        ({"batch_sizes": "8,-2"}, "batch_sizes=-2 must be"),
        ({"batch_sizes": "8,x"}, "batch_sizes='x' must be"),
        ({"batch_sizes": "8,8"}, "batch_sizes=8,8 names a value twice"),
        ({"batch_sizes": []}, "batch_sizes is empty"),
        ({"epochs": 0}, "epochs=0 must be"),
        ({"epochs": 1.5}, "epochs=1.5 must be"),
        ({"epochs": True}, "epochs=True must be"),
        ({"seeds": 0}, "seeds=0 must be an integer from 1 to 1000"),
        ({"seeds": "0,-1"}, "seeds=-1 must be an integer from 0"),
        ({"seeds": [2**31]}, "seeds=2147483648 must be an integer from 0 to 2147483647"),
        ({"train_size": "0"}, "train_size=0 must be"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_with_the_fix(changed, message):
    with pytest.raises(InputError, match=message):
        settings(**changed)
