"""The networks that the source names: small modules to read, each with a recipe that trains it on real data.

The source is "From Fully Connected Layers to Convolutions" (*Dive into Deep Learning*, section 7.1). Each module holds
one system, the equation it computes, and a recipe, which is a command::

    python -m wherever.models.lenet --data DIR --plot lenet.png

=====================  ============================================================  ==============================
module                 system                                                        data
=====================  ============================================================  ==============================
`lenet`                LeNet-style CNN (LeCun, Bottou, Bengio, Haffner 1998)         handwritten digits
`cats_dogs`            an MLP, and a CNN with 100 times fewer weights                photographs of cats and dogs
`network_in_network`   Network in Network (Lin, Chen, Yan 2013)                      digits, photographs
`positions`            locally connected layers, coordinate channels (Liu et al.     digits, photographs
                       2018): where invariance is not wanted
`neocognitron`         the neocognitron (Fukushima 1982), and a later variant        digits
`fcn`                  fully convolutional network (Long, Shelhamer, Darrell         photographs of blood
                       2015): dense prediction at any size
`spoken_digits`        time-delay network (Waibel et al. 1989), and a CNN on the     words of four speakers
                       spectrogram
`hyperspectral`        kernels of 1x1, 3x3 and three dimensions over 198 bands       a scene of Jasper Ridge
`text_cnn`             CNN for sentences (Kim 2014), and what goes wrong             sentences about films
=====================  ============================================================  ==============================

What they share: `data` reads the files, `augmentation` changes images at random, `training` is the loop, `recipe` the
command with its table and its picture. Nothing is imported before it is named; `pip install "wherever[find,torch]"`.
"""

from importlib.util import find_spec

for _library in ("torch", "rich", "PIL"):
    if find_spec(_library) is None:
        raise ImportError(f'wherever.models needs {_library}: pip install "wherever[find,torch]"')
