"""Between annotation tools and lisaseg: what they send and expect, put into our words and back. Nothing here answers a question itself.

`label_studio` and `x_anylabeling` are used by the service (`apps/server/routes`), `cvat` is loaded by CVAT's own command line. `docs/integrations.md`
tells how each is set up.
"""
