# %% [markdown]
# # Normalización por grupos, por instancia y por capa
#
# Este tutorial muestra qué hace una capa de normalización, la dibuja, y entrena tres de ellas,
# junto a la normalización por lotes, en una pequeña red convolucional con cifras escritas a mano.
# En una CPU tarda cerca de un minuto. Las salidas que se guardan aquí se hicieron con MNIST, en
# JAX.
#
# Sigue al tutorial sobre normalizaciones de TensorFlow Addons, que dejó de mantenerse en 2024. El
# código de entonces sigue sirviendo con cambiar una línea: `import tensorflow_addons as tfa` pasa a
# ser `import truenorm as tfa`.
#
# En Colab, sube antes un clon de truenorm o un wheel suyo: la celda siguiente instala lo que
# nombra. Fuera de Colab la celda no hace nada y hay que instalarlo antes con `pip install` en un
# clon: lo explica el README.

# %%
import subprocess
import sys

TRUENORM = "/content/truenorm"  # el clon, o el wheel, que hayas subido
if "google.colab" in sys.modules:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", TRUENORM], check=True)

# %%
import pathlib

import truenorm  # antes que Keras: mira si está instalado el backend de Keras
import keras
import numpy as np

# %% [markdown]
# ## Qué es una normalización
#
# Mientras una red aprende, los números que lleva dentro se desplazan: unos canales crecen, otros
# menguan, y cada capa tiene que seguir los cambios de la anterior. Una normalización devuelve los
# números a una escala común. Reúne los elementos en grupos y, en cada grupo, resta la media $\mu$ y
# divide entre la desviación típica:
#
# $$y = \gamma \, \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta$$
#
# - $\mu$ y $\sigma^2$ son la media y la varianza **del grupo de elementos** al que pertenece $x$.
# - $\epsilon$ es un número pequeño que evita dividir entre cero cuando el grupo es constante.
# - $\gamma$ y $\beta$ **se aprenden**, por lo general uno de cada para cada canal, de modo que la
#   red puede elegir otra escala y otra media donde le convenga.
#
# Las clases de normalización difieren en una sola cosa: qué elementos forman un grupo. La
# normalización por lotes mete en él el lote entero, así que lo que le pasa a una imagen depende de
# las que la acompañan, y el entrenamiento difiere de la inferencia. Las tres de aquí no salen de
# una imagen. Hacen lo mismo con cualquier tamaño de lote, al entrenar y al inferir.

# %% [markdown]
# ## El dibujo
#
# Tras la convolución de nuestra red, un lote de 8 imágenes es un tensor de 8 muestras (N) con 26 ×
# 26 píxeles (H, W) y 10 canales (C). Los elementos azules comparten una media y una varianza. (El
# dibujo y las explicaciones de truenorm están en inglés.)

# %%
forma = (8, 26, 26, 10)
truenorm.explain("all", forma)

# %% [markdown]
# ## La fórmula, a mano
#
# La normalización por grupos con 5 grupos de 2 canales, en NumPy: el eje de los canales se parte en
# grupos, y la media se toma sobre los píxeles y sobre los canales de cada grupo. La capa da los
# mismos números; empieza con $\gamma = 1$ y $\beta = 0$.

# %%
x = np.random.default_rng(0).normal(3.0, 2.0, forma).astype("float32")
grupos = x.reshape(8, 26, 26, 5, 2)
media = grupos.mean(axis=(1, 2, 4), keepdims=True)
varianza = grupos.var(axis=(1, 2, 4), keepdims=True)
a_mano = ((grupos - media) / np.sqrt(varianza + 1e-3)).reshape(forma)

capa = truenorm.GroupNormalization(groups=5, axis=3, epsilon=1e-3)
diferencia = np.abs(keras.ops.convert_to_numpy(capa(x)) - a_mano).max()
print(f"mayor diferencia: {diferencia:.0e}")

# %% [markdown]
# ## Los datos
#
# MNIST: imágenes de cifras escritas a mano, de 28 × 28 píxeles, y como etiquetas las cifras del 0
# al 9. Keras las descarga. Donde no hay red se toma el archivo `mnist.npz` que esté junto a este
# cuaderno y, si no lo hay, las cifras que trae scikit-learn: 1797 imágenes de 8 × 8 píxeles, que
# dibujamos el triple de grandes y recorremos siete veces. Entrenamos con las primeras 10 000
# imágenes y evaluamos con otras 10 000.

# %%
epocas = 1
try:
    (x_train, y_train), (x_test, y_test) = keras.datasets.mnist.load_data()
    print("MNIST, de Keras")
except Exception:  # no hay red
    if pathlib.Path("mnist.npz").exists():
        archivo = np.load("mnist.npz")
        x_train, y_train, x_test, y_test = (
            archivo[nombre] for nombre in ("x_train", "y_train", "x_test", "y_test")
        )
        print("MNIST, de mnist.npz")
    else:
        from sklearn.datasets import load_digits

        cifras = load_digits()
        x = cifras.images.repeat(3, axis=1).repeat(3, axis=2) * 255 / 16
        x = np.pad(x, ((0, 0), (2, 2), (2, 2)))
        x_train, y_train, x_test, y_test = (
            x[:1500],
            cifras.target[:1500],
            x[1500:],
            cifras.target[1500:],
        )
        epocas = 7
        print("no es MNIST, sino las cifras de scikit-learn: otros números que los del texto")
x_train, y_train = x_train[:10_000] / 255.0, y_train[:10_000]
x_test = x_test / 255.0

# %% [markdown]
# ## La red
#
# Una convolución con 10 filtros, la normalización y dos capas densas. La convolución deja sus
# canales en el último de los cuatro ejes, el eje 3, y ese es el que se les indica a las
# normalizaciones. Todas las redes empiezan con los mismos pesos al azar.


# %%
def construir(normalizacion):
    keras.utils.set_random_seed(0)
    modelo = keras.Sequential(
        [
            keras.Input((28, 28)),
            keras.layers.Reshape((28, 28, 1)),  # un canal, en último lugar
            keras.layers.Conv2D(filters=10, kernel_size=(3, 3), data_format="channels_last"),
            normalizacion,
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    modelo.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return modelo


exactitud = {}

# %% [markdown]
# ## Sin normalización, y con normalización por lotes
#
# La normalización por lotes (Ioffe y Szegedy, 2015) es una capa de Keras. Toma la media y la
# varianza de un canal sobre todas las imágenes del lote. Para inferir guarda medias móviles de
# ambas; con `momentum=0.9` siguen los cambios más deprisa que por omisión, ya que entrenamos pocos
# pasos.
#
# **Qué esperar.** Necesita lotes: con 2 imágenes en uno, los valores son los de dos imágenes y
# dicen poco de las demás.

# %%
print(truenorm.explain("batch", forma))

# %%
modelo = construir(keras.layers.Identity())
modelo.fit(x_train, y_train, epochs=epocas, verbose=2)
exactitud["ninguna"] = modelo.evaluate(x_test, y_test, verbose=0)[1]

# %%
modelo = construir(keras.layers.BatchNormalization(axis=3, momentum=0.9))
modelo.fit(x_train, y_train, epochs=epocas, verbose=2)
exactitud["lotes"] = modelo.evaluate(x_test, y_test, verbose=0)[1]

# %% [markdown]
# ## Normalización por grupos
#
# La normalización por grupos reparte los canales de cada imagen en grupos de vecinos. Aquí los 10
# canales forman 5 grupos de 2; el número de grupos tiene que dividir al de canales. Con un solo
# grupo se toma la imagen entera; con tantos grupos como canales, es la normalización por instancia.
#
# **Qué esperar.** Entrenar es igual de estable con 2 imágenes por lote que con 32, porque ninguna
# imagen ve a las demás. Con lotes grandes, la normalización por lotes suele ser algo más exacta.
#
# **Dónde se usa.** Donde las imágenes son tan grandes que en la memoria caben pocas: detección,
# segmentación, vídeo; y en las U-Net de los modelos de difusión.

# %%
capa = truenorm.GroupNormalization(groups=5, axis=3)
print(truenorm.explain(capa, forma))

# %%
modelo = construir(capa)
modelo.fit(x_train, y_train, epochs=epocas, verbose=2)
exactitud["grupos"] = modelo.evaluate(x_test, y_test, verbose=0)[1]

# %% [markdown]
# ## Normalización por instancia
#
# La normalización por instancia toma cada canal de cada imagen por separado. El brillo y el
# contraste de un canal desaparecen; lo que queda es el dibujo.
#
# `center` y `scale` añaden los $\beta$ y $\gamma$ que se aprenden. Sus inicializadores son aquí un
# ejemplo de que se puede nombrar cualquiera de los de Keras, no una recomendación:
# `"random_uniform"` sortea números entre −0,05 y 0,05, así que la salida empieza cerca de cero y
# algunos canales, del revés.
#
# **Qué esperar.** Un comienzo más lento que con $\gamma = 1$, el valor por omisión, que la red ya
# ha recuperado al acabar la época. Donde es el contraste lo que distingue a las clases, aquí se
# pierde.
#
# **Dónde se usa.** En la transferencia de estilo, para la que se inventó, y en otras redes que
# hacen imágenes a partir de imágenes.

# %%
capa = truenorm.InstanceNormalization(
    axis=3,
    center=True,
    scale=True,
    beta_initializer="random_uniform",
    gamma_initializer="random_uniform",
)
print(truenorm.explain(capa, forma))

# %%
modelo = construir(capa)
modelo.fit(x_train, y_train, epochs=epocas, verbose=2)
exactitud["instancia"] = modelo.evaluate(x_test, y_test, verbose=0)[1]

# %% [markdown]
# ## Normalización por capa
#
# De la normalización por capa se dice a menudo que toma juntas todas las activaciones de una
# muestra. Con el vector de una capa densa es así. Con una imagen, `axis` dice qué ejes se toman
# juntos, y **`axis=3` toma los canales de un píxel**: 26 × 26 medias por imagen, no una. El
# tutorial al que sigue este decía que normaliza la muestra; el dibujo enseña lo que hace.

# %%
truenorm.explain("layer", forma, axis=3)

# %% [markdown]
# Para tomar la imagen entera hay que nombrar todos sus ejes. Entonces $\gamma$ y $\beta$ tienen un
# número para cada uno de los 6760 elementos, y la capa queda atada a un tamaño de imagen;
# `GroupNormalization(groups=1)` tiene las mismas medias con un $\gamma$ por canal.

# %%
print(truenorm.explain("layer", forma, axis=[1, 2, 3]))

# %% [markdown]
# **Qué esperar.** Con `axis=3`, de un píxel solo queda cómo se comparan sus canales entre sí: uno
# claro y uno oscuro salen iguales si se comparan de la misma manera. El lugar de un trazo se
# conserva, porque cada píxel tiene su propia media.
#
# **Dónde se usa.** En los transformers y las redes recurrentes, donde se normalizan por separado
# las características de cada paso, que es lo que hace `axis=-1`; y en redes convolucionales hechas
# a su imagen, como ConvNeXt.

# %%
capa = truenorm.LayerNormalization(axis=3, center=True, scale=True)
modelo = construir(capa)
modelo.fit(x_train, y_train, epochs=epocas, verbose=2)
exactitud["capa"] = modelo.evaluate(x_test, y_test, verbose=0)[1]

# %% [markdown]
# ## Todas juntas

# %%
for nombre, valor in exactitud.items():
    print(f"{nombre:9} {valor:.1%}")

# %% [markdown]
# Con MNIST las cinco acaban entre el 91 % y el 94 %, también la red sin normalización: la tarea es
# fácil y la red, poco profunda. Las normalizaciones son para las profundas, que sin ellas se
# entrenan mal o no se entrenan. Con otra semilla u otro backend puede cambiar el orden. Para saber
# cuál conviene a unos datos y a un tamaño de lote hay que entrenar con varias semillas: la orden
# `truenorm compare` lo hace y dice qué respaldan los números.
#
# ## Bibliografía
#
# - J. L. Ba, J. R. Kiros, G. E. Hinton: Layer Normalization, 2016,
#   [arXiv:1607.06450](https://arxiv.org/abs/1607.06450)
# - D. Ulyanov, A. Vedaldi, V. Lempitsky: Instance Normalization: The Missing Ingredient for Fast
#   Stylization, 2016, [arXiv:1607.08022](https://arxiv.org/abs/1607.08022)
# - S. Ioffe, C. Szegedy: Batch Normalization: Accelerating Deep Network Training by Reducing
#   Internal Covariate Shift, 2015, [arXiv:1502.03167](https://arxiv.org/abs/1502.03167)
# - Y. Wu, K. He: Group Normalization, 2018, [arXiv:1803.08494](https://arxiv.org/abs/1803.08494)
