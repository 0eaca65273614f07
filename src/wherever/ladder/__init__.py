"""The ladder from a fully connected layer to a convolution: every rung an object that runs, counts and converts.

The text this follows is "From Fully Connected Layers to Convolutions" (Zhang, Lipton, Li and Smola, *Dive into Deep
Learning*, section 7.1), and the letters are its own: an image ``X[k, l]``, its hidden representation ``H[i, j]``,
offsets ``a = k - i`` and ``b = l - j``, input channels ``c``, output channels ``d``. It is written there for two
dimensions; here every formula holds for any number n of them (a sound, an image, a volume).

=======================  ============================================================  ====================
rung                     its equation in two dimensions                                weights
=======================  ============================================================  ====================
`FullyConnected`         ``H[i,j] = U[i,j] + Σ_kl W[i,j,k,l] X[k,l]``                   all pairs of pixels
the same, re-indexed     ``H[i,j] = U[i,j] + Σ_ab V[i,j,a,b] X[i+a,j+b]``               the same ones
`TranslationInvariant`   ``H[i,j] = u + Σ_ab V[a,b] X[i+a,j+b]``                        one for each offset
`Local`                  the same with ``|a| <= Δ`` and ``|b| <= Δ``                    (2Δ+1)^n
`Convolution`            ``H[i,j,d] = u[d] + Σ_abc V[a,b,c,d] X[i+a,j+b,c]``            (2Δ+1)^n · C · D
=======================  ============================================================  ====================

Three things hold it together.

*The window.* Seen from position i, the N pixels of the image are the offsets ``-i ... N-1-i``: a window as long as the
image in the range of all offsets, ``-(H-1) ... N-1``, that moves one step back when i moves one step on. Everything
that turns ``W`` into ``V``, a kernel into ``W``, or ``W`` into the nearest kernel, is that window.

*One space.* Every rung equals some fully connected layer, so all of them are vectors in one space, that of the tensors
``W``, and each rung is a linear subspace of it. "Nearest" and "energy" (the sum of squares) are meant in that space: a
kernel's weight ``V[a]`` counts as often as the offset a occurs between two places of the image. Hence each step down
is an orthogonal projection, and the energies lost on the way add up (Pythagoras).

*Counting without having.* `Count` is computed from shapes alone, so that 10^12 weights can be described where they
cannot be stored; a layer and its description share the same function.

Read `layers` beside the source, then `comparison`, which makes the table; `shares` says on which rungs trained weights
lie.
"""

from wherever.ladder.comparison import Row, Table, table
from wherever.ladder.counts import Count
from wherever.ladder.layers import Convolution, FullyConnected, Local, Projection, TranslationInvariant
from wherever.ladder.memory import available_memory
from wherever.ladder.shares import Shares, shares

__all__ = [
    "Convolution",
    "Count",
    "FullyConnected",
    "Local",
    "Projection",
    "Row",
    "Shares",
    "Table",
    "TranslationInvariant",
    "available_memory",
    "shares",
    "table",
]
