"""The service: one HTTP process that never imports torch, and engine processes that do.

    serve.py      start, signals, drain            app.py       routes put together
    gate.py       every request passes here first: host, origin, key, sizes, ids, log line
    routes/       what each path does              schemas.py   what goes in and out
    scheduler.py  bounded fair queue, batches      worker.py    one engine process seen from outside: start, watch, restart
    engine.py     the engine process itself        storage.py   pictures and sessions on disk
    catalogue.py  every error code                 settings.py  every limit
    integrations.py  doors for annotation tools, closed until they are named; their words are in apps/integrations
    fetching.py   pictures from URLs               label_studio_files.py  pictures out of Label Studio, with its access token

A request becomes a `Job`; the scheduler puts jobs of many requests into one batch; the engine answers the batch and sends text as it comes.
`docs/api.md` is the contract.
"""
