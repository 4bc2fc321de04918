"""Power cuts, killed processes and I/O errors at every step the library's own SQL makes on its files.

SQLite runs on a disk that exists only in memory and that can be stopped, damaged and looked at: `disk` is what a disk
may hold after a power cut, `machine` stops or fails at a step, `vfs` puts SQLite on it, `driver` gives the library the
connection it expects, `library` runs the library's own functions, `ledger` says what may be there afterwards,
`scenarios` are the programs, `cases` runs them with a fault at a step. All of it lives in a process of its own
(`shim_process`), because apsw carries a SQLite library of its own, and two of them in one process that use one file
drop each other's locks. `python -m tests.power MODE SCENARIO STEP SEED` runs one case again.
"""
