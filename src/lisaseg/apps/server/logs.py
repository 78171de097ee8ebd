"""What the service writes about itself: one line an event on stderr, as JSON or as text. Never prompts, answers, pictures, file names or keys."""

from __future__ import annotations

import json
import logging
import sys
import time

log = logging.getLogger("lisaseg.server")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


class _Formatter(logging.Formatter):
    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self.as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        facts = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        event = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:  # a library's: kind and place, not its words
            facts |= {"exception": type(record.exc_info[1]).__name__, "where": where(record.exc_info[1])}
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        if self.as_json:
            return json.dumps({"time": moment, "level": record.levelname.lower(), "event": event, **facts}, default=str)
        return f"{moment} {record.levelname:7} {event} " + " ".join(f"{name}={value}" for name, value in facts.items())


def set_up(form: str, level: int = logging.INFO) -> None:
    """Send the log to stderr in `form`, "json" or "text"."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(form == "json"))
    for name, least in (("lisaseg.server", level), ("uvicorn", logging.WARNING), ("asyncio", logging.WARNING), ("mcp", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(least)


def where(error: BaseException) -> str:
    """Files and lines through which an exception came: enough to find a fault, and no content."""
    lines, trace = [], error.__traceback__
    while trace is not None:
        lines.append(f"{trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}")
        trace = trace.tb_next
    return " > ".join(lines[-6:])
