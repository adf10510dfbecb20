"""One command for a day with a GPU: `python -m tests.bench.gpu`.

Each part runs in a process of its own with a time limit, the most important first (`schedule.py`); what it found is on
the disk at once (`findings.py`), and the page is written anew after each (`page.py`).
"""
