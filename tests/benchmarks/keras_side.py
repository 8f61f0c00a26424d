"""241002_3 in Keras, for the benchmarks to compare with. Runs in the environment KERAS_VENV and prints one JSON object.

python keras_side.py train RESOLUTION N_TRAINING N_VALIDATION EPOCHS
python keras_side.py infer RESOLUTION N_PAGES
"""

import json
import os
import sys
import time

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np
import tensorflow as tf
from keras import layers

# resolution: (channels of the 5x5 convolutions, width of the dense layer)
LAYERS_241002_3 = {256: ((8, 8, 12), 256), 128: ((8, 12, 12), 256), 64: ((8, 12, 8), 512), 32: ((8, 12, 12), 512)}
SECONDS_OF_LOOP = 5.0


class Stopwatch(keras.callbacks.Callback):
    """Seconds of every epoch, without its validation."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self.began = time.perf_counter()

    def on_test_begin(self, logs=None):
        self.seconds.append(time.perf_counter() - self.began)


def build(resolution: int) -> keras.Model:
    channels, dense_width = LAYERS_241002_3[resolution]
    network = [layers.Input((resolution, resolution, 1))]
    for number, n in enumerate(channels):
        if number:
            network.append(layers.MaxPooling2D(2))
        network.append(layers.Conv2D(n, 5, activation="relu"))
    network += [layers.Flatten(), layers.Dense(dense_width, activation="relu"), layers.Dense(2, activation="softmax")]
    return keras.Sequential(network)


def train(resolution: int, n_training: int, n_validation: int, n_epochs: int) -> dict:
    random, n_images = np.random.default_rng(0), n_training + n_validation
    images = random.integers(0, 256, (n_images, resolution, resolution), dtype=np.uint8)
    labels = random.integers(0, 2, n_images)
    model, stopwatch = build(resolution), Stopwatch()
    model.compile(keras.optimizers.Adam(1e-4), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(
        images[:n_training],
        labels[:n_training],
        validation_data=(images[n_training:], labels[n_training:]),
        batch_size=32,
        epochs=n_epochs,
        verbose=0,
        callbacks=[stopwatch],
    )
    return {"images_per_s": [n_training / seconds for seconds in stopwatch.seconds[1:]]}


def infer(resolution: int, n_pages: int) -> dict:
    pages = np.random.default_rng(0).integers(0, 256, (n_pages, resolution, resolution), dtype=np.uint8)
    model = build(resolution)
    model.predict(pages[:1], verbose=0)
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS_OF_LOOP:
        model.predict(pages[done % n_pages][None], verbose=0)
        done += 1
    loop = done / (time.perf_counter() - began)

    model.predict(pages, batch_size=256, verbose=0)
    speeds = []
    for _ in range(5):
        began = time.perf_counter()
        model.predict(pages, batch_size=256, verbose=0)
        speeds.append(n_pages / (time.perf_counter() - began))
    return {"loop": loop, "predict": max(speeds)}


if __name__ == "__main__":
    task = {"train": train, "infer": infer}[sys.argv[1]]
    result = task(*map(int, sys.argv[2:]))
    print(json.dumps(result | {"version": f"Keras {keras.__version__}, TensorFlow {tf.__version__}"}))
