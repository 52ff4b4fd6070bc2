"""Write addons_names.json: the public names of TensorFlow Addons, part by part.

Run in an environment with tensorflow-addons 0.23.0, tensorflow-cpu 2.15.1 and numpy below 2.
"""

import inspect
import json
import pathlib

import tensorflow_addons as tfa

PARTS = ("activations", "callbacks", "image", "layers", "losses", "metrics", "optimizers", "rnn")
PARTS += ("seq2seq", "text")
names = {
    part: sorted(
        name
        for name, value in vars(getattr(tfa, part)).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    )
    for part in PARTS
}
path = pathlib.Path(__file__).with_name("addons_names.json")
path.write_text(json.dumps(names, indent=1) + "\n")
