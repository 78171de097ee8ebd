"""lisaseg as tools of an assistant, by the Model Context Protocol.

    tools.py    what an assistant sees: the tools, their results, their failures
    stdio.py    `lisaseg mcp`: beside a desktop assistant, on standard input and output

The third file is `server/routes/mcp.py`: the same tools at `/mcp` of the service. All of it needs the package `mcp` (`pip install 'lisaseg[mcp]'`).
"""
