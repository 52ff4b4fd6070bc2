# %% [markdown]
# # Group, instance and layer normalization
#
# This tutorial shows what a normalization layer does, draws it, and trains three of them, beside
# batch normalization, in a small convolutional network on handwritten digits. It takes about a
# minute on a CPU. The outputs that are kept here were made with MNIST, on JAX.
#
# It follows the tutorial on normalizations of TensorFlow Addons, which came to its end in 2024.
# Code of that time goes on with one line changed: `import tensorflow_addons as tfa` becomes `import
# truenorm as tfa`.
#
# In Colab, upload a clone of truenorm or a wheel of it first: the next cell installs what it names.
# Elsewhere the cell does nothing, and `pip install` in a clone comes before: see the README.

# %%
import subprocess
import sys

TRUENORM = "/content/truenorm"  # the clone, or the wheel, that you have uploaded
if "google.colab" in sys.modules:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", TRUENORM], check=True)

# %%
import pathlib

import truenorm  # before Keras: it looks whether Keras' backend is installed
import keras
import numpy as np

# %% [markdown]
# ## What a normalization is
#
# Inside a network the numbers drift while it learns: some channels grow, others shrink, and each
# layer has to follow what the one before it does. A normalization brings the numbers back to a
# common scale. It takes elements together in groups, and in each group it subtracts the mean $\mu$
# and divides by the standard deviation:
#
# $$y = \gamma \, \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta$$
#
# - $\mu$ and $\sigma^2$ are the mean and the variance **of the group of elements** that $x$ is in.
# - $\epsilon$ is a small number that keeps a constant group from a division by zero.
# - $\gamma$ and $\beta$ are **learned**, usually one of each for each channel, so that the network
#   can choose another scale and another mean where that is better.
#
# The kinds of normalization differ in one thing only: which elements are a group. Batch
# normalization puts the whole batch into it, so that what becomes of an image depends on the images
# beside it, and training differs from inference. The three kinds here stay inside one image. They
# do the same for any batch size, in training and in inference.

# %% [markdown]
# ## The picture
#
# After the convolution of our network, a batch of 8 images is a tensor of 8 samples (N) with 26 ×
# 26 pixels (H, W) and 10 channels (C). Blue elements share one mean and one variance.

# %%
shape = (8, 26, 26, 10)
truenorm.explain("all", shape)

# %% [markdown]
# ## The formula, by hand
#
# Group normalization with 5 groups of 2 channels, in NumPy: the channel axis is split into groups,
# and the mean is taken over the pixels and over the channels within a group. The layer gives the
# same numbers; it starts with $\gamma = 1$ and $\beta = 0$.

# %%
x = np.random.default_rng(0).normal(3.0, 2.0, shape).astype("float32")
groups = x.reshape(8, 26, 26, 5, 2)
mean = groups.mean(axis=(1, 2, 4), keepdims=True)
variance = groups.var(axis=(1, 2, 4), keepdims=True)
by_hand = ((groups - mean) / np.sqrt(variance + 1e-3)).reshape(shape)

layer = truenorm.GroupNormalization(groups=5, axis=3, epsilon=1e-3)
difference = np.abs(keras.ops.convert_to_numpy(layer(x)) - by_hand).max()
print(f"largest difference: {difference:.0e}")

# %% [markdown]
# ## The data
#
# MNIST: images of handwritten digits, 28 × 28 pixels, and the digits 0 to 9 as labels. Keras
# downloads it. Where there is no network, a file `mnist.npz` beside this notebook is taken, and
# without one the digits that scikit-learn has on board: 1,797 images of 8 × 8 pixels, which we draw
# three times as large and train on seven times. We train on the first 10,000 images and evaluate on
# 10,000 others.

# %%
epochs = 1
try:
    (x_train, y_train), (x_test, y_test) = keras.datasets.mnist.load_data()
    print("MNIST, from Keras")
except Exception:  # there is no network
    if pathlib.Path("mnist.npz").exists():
        file = np.load("mnist.npz")
        x_train, y_train, x_test, y_test = (
            file[name] for name in ("x_train", "y_train", "x_test", "y_test")
        )
        print("MNIST, from mnist.npz")
    else:
        from sklearn.datasets import load_digits

        digits = load_digits()
        x = digits.images.repeat(3, axis=1).repeat(3, axis=2) * 255 / 16
        x = np.pad(x, ((0, 0), (2, 2), (2, 2)))
        x_train, y_train, x_test, y_test = (
            x[:1500],
            digits.target[:1500],
            x[1500:],
            digits.target[1500:],
        )
        epochs = 7
        print("not MNIST, but scikit-learn's digits: other numbers than those in the text")
x_train, y_train = x_train[:10_000] / 255.0, y_train[:10_000]
x_test = x_test / 255.0

# %% [markdown]
# ## The network
#
# One convolution with 10 filters, the normalization, and two dense layers. The convolution keeps
# its channels in the last of the four axes, axis 3, and that is the axis the normalizations are
# told. Every network begins with the same random weights.


# %%
def build(normalization):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((28, 28)),
            keras.layers.Reshape((28, 28, 1)),  # one channel, last
            keras.layers.Conv2D(filters=10, kernel_size=(3, 3), data_format="channels_last"),
            normalization,
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


accuracy = {}

# %% [markdown]
# ## Without a normalization, and with batch normalization
#
# Batch normalization (Ioffe and Szegedy, 2015) is Keras' own layer. It takes the mean and the
# variance of a channel over all images of the batch. For inference it keeps running means of them;
# `momentum=0.9` makes those follow faster than by default, since we train for few steps.
#
# **What to expect.** It needs batches: with 2 images in one, the statistics are those of two images
# and say little about the others.

# %%
print(truenorm.explain("batch", shape))

# %%
model = build(keras.layers.Identity())
model.fit(x_train, y_train, epochs=epochs, verbose=2)
accuracy["none"] = model.evaluate(x_test, y_test, verbose=0)[1]

# %%
model = build(keras.layers.BatchNormalization(axis=3, momentum=0.9))
model.fit(x_train, y_train, epochs=epochs, verbose=2)
accuracy["batch"] = model.evaluate(x_test, y_test, verbose=0)[1]

# %% [markdown]
# ## Group normalization
#
# Group normalization divides the channels of each image into groups of neighbours. Here the 10
# channels make 5 groups of 2; the number of groups must divide the number of channels. One group is
# the whole image; as many groups as channels is instance normalization.
#
# **What to expect.** Training is as stable with 2 images in a batch as with 32, since no image sees
# another. With large batches, batch normalization is often a little more accurate.
#
# **Where it is used.** Where large images leave room for few of them in memory: detection,
# segmentation, video; and in the U-Nets of diffusion models.

# %%
layer = truenorm.GroupNormalization(groups=5, axis=3)
print(truenorm.explain(layer, shape))

# %%
model = build(layer)
model.fit(x_train, y_train, epochs=epochs, verbose=2)
accuracy["group"] = model.evaluate(x_test, y_test, verbose=0)[1]

# %% [markdown]
# ## Instance normalization
#
# Instance normalization takes each channel of each image by itself. Brightness and contrast of a
# channel are gone afterwards; what remains is the pattern.
#
# `center` and `scale` add the learned $\beta$ and $\gamma$. Their initializers are an example here
# that any of Keras can be named, not a recommendation: `"random_uniform"` draws between −0.05 and
# 0.05, so the output starts near zero, some channels upside down.
#
# **What to expect.** A slower start than with $\gamma = 1$, the default, which the network has made
# up for by the end of the epoch. Where contrast tells the classes apart, it is lost here.
#
# **Where it is used.** Style transfer, for which it was invented, and other networks that make
# images from images.

# %%
layer = truenorm.InstanceNormalization(
    axis=3,
    center=True,
    scale=True,
    beta_initializer="random_uniform",
    gamma_initializer="random_uniform",
)
print(truenorm.explain(layer, shape))

# %%
model = build(layer)
model.fit(x_train, y_train, epochs=epochs, verbose=2)
accuracy["instance"] = model.evaluate(x_test, y_test, verbose=0)[1]

# %% [markdown]
# ## Layer normalization
#
# Layer normalization is often described as taking all activations of a sample together. For the
# vector of a dense layer that is so. For an image, `axis` says which axes are taken together, and
# **`axis=3` takes the channels of one pixel**: 26 × 26 means for each image, not one. The tutorial
# that this one follows said that it normalizes the sample; the picture shows what it does.

# %%
truenorm.explain("layer", shape, axis=3)

# %% [markdown]
# To take the whole image, name all its axes. $\gamma$ and $\beta$ then have a number for each of
# the 6,760 elements, which ties the layer to one size of image; `GroupNormalization(groups=1)` has
# the same means with one $\gamma$ for each channel.

# %%
print(truenorm.explain("layer", shape, axis=[1, 2, 3]))

# %% [markdown]
# **What to expect.** With `axis=3`, a pixel keeps only how its channels compare with one another: a
# bright one and a dim one come out alike if they compare in the same way. The place of a stroke
# stays, since each pixel has a mean of its own.
#
# **Where it is used.** Transformers and recurrent networks, where the features of each step are
# normalized by themselves, which is what `axis=-1` does; and convolutional networks built after
# them, such as ConvNeXt.

# %%
layer = truenorm.LayerNormalization(axis=3, center=True, scale=True)
model = build(layer)
model.fit(x_train, y_train, epochs=epochs, verbose=2)
accuracy["layer"] = model.evaluate(x_test, y_test, verbose=0)[1]

# %% [markdown]
# ## Side by side

# %%
for name, value in accuracy.items():
    print(f"{name:8} {value:.1%}")

# %% [markdown]
# With MNIST all five end between 91% and 94%, the network without a normalization too: the task is
# easy and the network shallow. Normalizations are there for deep ones, which train badly or not at
# all without. Another seed or backend may change the order. To find out which one suits some data
# and a batch size, train with several seeds: the command `truenorm compare` does that, and says
# what the numbers support.
#
# ## Literature
#
# - J. L. Ba, J. R. Kiros, G. E. Hinton: Layer Normalization, 2016,
#   [arXiv:1607.06450](https://arxiv.org/abs/1607.06450)
# - D. Ulyanov, A. Vedaldi, V. Lempitsky: Instance Normalization: The Missing Ingredient for Fast
#   Stylization, 2016, [arXiv:1607.08022](https://arxiv.org/abs/1607.08022)
# - S. Ioffe, C. Szegedy: Batch Normalization: Accelerating Deep Network Training by Reducing
#   Internal Covariate Shift, 2015, [arXiv:1502.03167](https://arxiv.org/abs/1502.03167)
# - Y. Wu, K. He: Group Normalization, 2018, [arXiv:1803.08494](https://arxiv.org/abs/1803.08494)
