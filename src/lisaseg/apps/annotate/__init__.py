"""`lisaseg annotate`: a data set made in the browser. Doors only: the service of `apps/server` answers, `formats/jsonl` says what a sample is.

    sample_file.py  the JSONL file: lines kept as they are, written whole and aside, changes by others seen
    samples.py      one line <-> what the page works on; a line that was written is a line that can be read
    pictures.py     the pictures of the folder: list, thumbnail, pixels as the model sees them
    routes.py       what the page calls
    run.py          put together and served, on this machine only

The page itself: `apps/web/annotate.html`, `apps/web/js/annotate/`. `docs/annotate.md` is its manual.
"""
