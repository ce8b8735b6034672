#!/usr/bin/python3
"""The judge of what a connection string means: PostgreSQL's own libpq, the one inside of the psycopg wheel.

Reads a question a line from stdin and answers each with a line of JSON:

    {"do": "version"}                                     -> {"version": 180003}
    {"do": "parse", "texts": ["host=h", ...]}             -> {"parsed": [{"host": "h"}, ... or null if refused]}
    {"do": "connect", "text": "...", "env": {...}, "sql": "..."} -> {"row": [...]} or {"error": "..."}

`env` replaces all of libpq's variables, HOME and SSL_CERT_*: nothing of the judge's own environment counts.

    libpq_judge.py FOLDER     the folder that the wheel was unpacked to
"""

import ctypes
import glob
import json
import os
import sys


class Option(ctypes.Structure):
    _fields_ = [(name, ctypes.c_char_p) for name in ("keyword", "envvar", "compiled", "val", "label", "dispchar")]
    _fields_.append(("dispsize", ctypes.c_int))


def load(folder):
    [path] = glob.glob(os.path.join(folder, "psycopg_binary.libs", "libpq-*.so.5*"))
    pq = ctypes.CDLL(path)
    pq.PQconninfoParse.argtypes = [ctypes.c_char_p, ctypes.POINTER(ctypes.c_char_p)]
    pq.PQconninfoParse.restype = ctypes.POINTER(Option)
    pq.PQconninfoFree.argtypes = [ctypes.POINTER(Option)]
    pq.PQfreemem.argtypes = [ctypes.c_char_p]
    pq.PQconnectdb.argtypes = [ctypes.c_char_p]
    for name in ("PQconnectdb", "PQexec"):
        getattr(pq, name).restype = ctypes.c_void_p
    for name in ("PQerrorMessage", "PQgetvalue"):
        getattr(pq, name).restype = ctypes.c_char_p
    for name in ("PQstatus", "PQerrorMessage", "PQfinish", "PQntuples", "PQnfields", "PQclear"):
        getattr(pq, name).argtypes = [ctypes.c_void_p]
    pq.PQexec.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    pq.PQgetvalue.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    return pq


def parsed(pq, text):
    """Keywords and values, or None where libpq refuses the string."""
    options = pq.PQconninfoParse(text.encode(), None)
    if not options:
        return None
    said, at = {}, 0
    while options[at].keyword:
        if options[at].val is not None:
            said[options[at].keyword.decode()] = options[at].val.decode(errors="replace")
        at += 1
    pq.PQconninfoFree(options)
    return said


def connected(pq, question):
    for name in list(os.environ):
        if name.startswith(("PG", "SSL_CERT_")) or name == "HOME":
            del os.environ[name]
    os.environ.update(question["env"])
    connection = pq.PQconnectdb(question["text"].encode())
    try:
        if pq.PQstatus(connection) != 0:
            return {"error": pq.PQerrorMessage(connection).decode(errors="replace")}
        result = pq.PQexec(connection, question["sql"].encode())
        if pq.PQntuples(result) != 1:
            return {"error": "after login: " + pq.PQerrorMessage(connection).decode(errors="replace")}
        row = [pq.PQgetvalue(result, 0, column).decode() for column in range(pq.PQnfields(result))]
        pq.PQclear(result)
        return {"row": row}
    finally:
        pq.PQfinish(connection)


def main():
    pq = load(sys.argv[1])
    # OpenSSL asks for a passphrase at the terminal or else at stdin: there is nobody to answer, and no answer to take.
    os.setsid()
    questions = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for line in questions:
        question = json.loads(line)
        if question["do"] == "version":
            answer = {"version": pq.PQlibVersion()}
        elif question["do"] == "parse":
            answer = {"parsed": [parsed(pq, text) for text in question["texts"]]}
        else:
            answer = connected(pq, question)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
