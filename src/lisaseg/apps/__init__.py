"""The doors: command line, server, web page, annotation tool, benchmark. They hold no tensor maths and import nothing heavy at start."""
