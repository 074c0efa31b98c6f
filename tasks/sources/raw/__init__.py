"""Data sets as their authors distribute them: TSV, JSON lines and JSON, in the original order.

A reader is a function from the open text of a file to rows with TFDS's fields, label numbers and
conventions, in the order of the file; a field of a field is written with a slash. It raises
ValueError, KeyError, TypeError or IndexError where the file is another one. One module per suite:

    glue.py         GLUE's nine tasks and its diagnostics: TSV
    super_glue.py   SuperGLUE's eight tasks and its diagnostics: JSON lines
    questions.py    SQuAD's JSON, MRQA's JSON lines
    others.py       PAWS, SciTail, WinoGrande, Yelp

`layouts.py` says which files of which folders they read, `folder.py` where these are, and
`raw_rows.py` makes columns of them.
"""
