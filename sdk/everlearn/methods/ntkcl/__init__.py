"""NTK-CL: its idea, and the three forms in which it comes.

`method` has what all forms share, `form` what they are asked; `one_pass` is the default form, `hybrid`
the paper's, and `released` that of the authors' code.
"""

from everlearn.methods.ntkcl.method import NTKCL

__all__ = ["NTKCL"]
