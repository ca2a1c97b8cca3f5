"The tools: what hangs is ended, what is slow is not; the lowest versions are those allowed."

import importlib.util
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
linux = pytest.mark.skipif(
    not Path('/proc/self/stat').exists(),
    reason='processor time of other processes is read from /proc',
)


def tool(name):
    "A script of tools/ as a module"
    spec = importlib.util.spec_from_file_location(name, ROOT / f'tools/{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check = tool('check')


def started(code):
    return subprocess.Popen([sys.executable, '-c', code], start_new_session=True)


@linux
def test_what_waits_in_vain_is_ended():
    "Also when it is a child that waits, and its parent only looks at it now and then"
    deep = f"""
import subprocess, time
p = subprocess.Popen([{sys.executable!r}, '-c', 'import time; time.sleep(99)'])
while p.poll() is None: time.sleep(.3)
"""
    child = started(deep)
    try:
        assert 'hangs' in check.watch(child, every=0.2, idle=3)
    finally:
        check.end(child)
    assert child.returncode == -signal.SIGKILL


@linux
def test_what_works_slowly_is_not_ended():
    "A tenth of a core, far longer than the limit of idle time"
    code = """
import time
end = time.monotonic() + 5
while time.monotonic() < end:
    start = time.process_time()
    while time.process_time() < start + .02: pass
    time.sleep(.18)
"""
    child = started(code)
    assert check.watch(child, every=0.2, idle=2) is None and child.returncode == 0


@linux
def test_what_runs_in_a_circle_is_ended():
    child = started('while True: pass')
    try:
        assert 'processor time' in check.watch(child, every=0.2, most=1)
    finally:
        check.end(child)


@linux
def test_time_of_children_counts():
    busy = 'import time\nwhile time.process_time() < 1: pass'
    child = started(
        f"""
import subprocess, sys, time
subprocess.run([sys.executable, '-c', {busy!r}])
time.sleep(99)
"""
    )
    try:
        end = time.monotonic() + 60
        while check.processor_seconds(child.pid) < 1 and time.monotonic() < end:
            time.sleep(0.1)
        assert 1 <= check.processor_seconds(child.pid) < 10
    finally:
        check.end(child)


def test_a_command_that_fails_stops_the_check():
    check.run(sys.executable, '-c', 'pass')
    with pytest.raises(SystemExit, match='exit status 3'):
        check.run(sys.executable, '-c', 'raise SystemExit(3)')


def test_lowest_versions(tmp_path):
    lowest = tool('lowest').lowest
    settings = tmp_path / 'settings.ini'
    settings.write_text(
        '[DEFAULT]\nrequirements = a>=1.2 b==3 c<2 d>=4,<5\nmore_requirements = e>=6\n'
    )
    assert lowest(settings=settings) == ['a==1.2', 'd==4'] and lowest(['more'], settings) == [
        'a==1.2',
        'd==4',
        'e==6',
    ]
    with pytest.raises(SystemExit, match='no extra'):
        lowest(['none'], settings)
    printed = subprocess.run(
        [sys.executable, ROOT / 'tools/lowest.py', 'search'],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert any(p.startswith('numpy==') for p in printed) and any(
        p.startswith('optuna==') for p in printed
    )
