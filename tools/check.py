"""All of the project's checks, in the order that finds most mistakes soonest. Stops at the first that fails.

    python tools/check.py

1 the notebooks and the package are in sync   2 the notebooks are clean   3 the notebooks run, and leave nothing behind
4 the wheel and the source package build, hold every file, install, and work outside the repository   5 pytest passes
"""
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
WORKERS = '2'
ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'Agg', 'PATH': f'{BIN}{os.pathsep}{os.environ["PATH"]}'}
# What hangs is ended, what is only slow is not: a loaded machine must not fail the check, so no limit counts elapsed time alone.
IDLE_SECONDS = 600  # a command that waits this long for something that does not come …
IDLE_SHARE = 0.01  # … that is, uses less than this share of one core
MOST_WORK = 3600  # seconds of processor time, all children together; a command that uses more runs in a circle


def run(*command, cwd=ROOT, **env):
    "Run a command; on failure, or when it hangs, end it with all its children and stop"
    child = subprocess.Popen([str(c) for c in command], cwd=cwd, env=ENV | env, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        why = watch(child)
    except BaseException:
        end(child)
        raise
    if why:
        end(child)
        sys.exit(f'✗ {" ".join(child.args)}: {why}')
    if child.returncode:
        sys.exit(f'✗ {" ".join(child.args)}: exit status {child.returncode}')


def watch(child, every=10, idle=IDLE_SECONDS, most=MOST_WORK):
    "Wait for a process; returns why it has to be ended, or None when it ended by itself"
    began, used = time.monotonic(), 0.
    while True:
        try:
            child.wait(every)
            return None
        except subprocess.TimeoutExpired:
            pass
        now, work = time.monotonic(), processor_seconds(child.pid)
        if work is None:
            continue
        if work > most:
            return f'not done after {most:g} s of processor time'
        # Less work than before: a child has ended whose time nobody counts, which is a sign of life, too
        if work < used or work - used > IDLE_SHARE*(now - began):
            began, used = now, work
        elif now - began > idle:
            return f'hangs: it has done nothing for {idle:g} s'


def processor_seconds(pid):
    "Seconds of processor time of a process and of all that it started; None where there is no /proc, and so no limit is kept"
    fields = {}
    for place in Path('/proc').glob('[0-9]*/stat'):
        try:
            words = place.read_text().rpartition(')')[2].split()  # the name before it may hold blanks
        except OSError:  # ended meanwhile
            continue
        # parent; its own time and that of its children that have ended
        fields[int(place.parent.name)] = int(words[1]), sum(map(int, words[11:15]))
    if not fields:
        return None
    family, ticks = {pid}, 0
    while family:
        ticks += sum(fields[p][1] for p in family if p in fields)
        family = {p for p, (parent, _) in fields.items() if parent in family}
    return ticks / os.sysconf('SC_CLK_TCK')


def end(child):
    "End a process with all that it started"
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()


def git_files(*args):
    "Paths, from the root, that git lists"
    out = subprocess.run(['git', 'ls-files', '-z', *args], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return {f for f in out.split('\0') if f and (ROOT/f).is_file()}


def snapshot():
    "Path -> hash of every file that git tracks or would add"
    return {f: hashlib.sha256((ROOT/f).read_bytes()).hexdigest() for f in git_files('-co', '--exclude-standard')}


def changes_nothing(message, *command, **kw):
    "Run a command that must leave every file as it was"
    before = snapshot()
    run(*command, **kw)
    after = snapshot()
    changed = sorted(f for f in before | after if before.get(f) != after.get(f))
    if changed: sys.exit(f'✗ {message}:\n  ' + '\n  '.join(changed))


def check_wheel(tmp):
    "Build the source package, from it the wheel; install that wheel and use it, all outside the repository"
    run(BIN/'python', '-m', 'build', '--no-isolation', '--outdir', tmp/'dist', ROOT)
    wheel, = (tmp/'dist').glob('*.whl')
    missing = git_files('deepmrs') - set(zipfile.ZipFile(wheel).namelist())
    if missing: sys.exit(f'✗ the wheel lacks {", ".join(sorted(missing))}: see package_data in settings.ini')
    site = tmp/'site'
    run(BIN/'python', '-m', 'pip', 'install', '--quiet', '--no-deps', '--target', site, wheel)
    outside = dict(cwd=tmp, PYTHONPATH=str(site))
    run(BIN/'python', '-c', f'import deepmrs; assert deepmrs.__file__.startswith({str(site)!r}), deepmrs.__file__', **outside)
    run(site/'bin/deepmrs', '--help', **outside)
    run(site/'bin/deepmrs', 'demo', '--out', tmp/'demo', **outside)
    for name in ('concentrations.csv', 'fit.nii.gz', 'report.html', 'run.json'):
        if not (tmp/'demo'/name).stat().st_size: sys.exit(f'✗ deepmrs demo wrote an empty {name}')


def main():
    start = time.time()
    def step(text): print(f'── {text} ({time.time()-start:.0f} s)', flush=True)
    step('notebooks and package in sync')
    changes_nothing('the package was not in sync with its notebooks; nbdev_export has now written', BIN/'nbdev_export')
    step('notebooks clean')
    changes_nothing('notebooks were not clean; nbdev_clean has now mended', BIN/'nbdev_clean')
    step('notebooks run')
    changes_nothing('running the notebooks left or changed', BIN/'nbdev_test', '--n_workers', WORKERS, '--do_print', '--timing')
    step('wheel')
    tmp = Path(tempfile.mkdtemp()).resolve()
    try: check_wheel(tmp)
    finally: shutil.rmtree(tmp)
    step('tests')
    run(BIN/'python', '-m', 'pytest', '-n', WORKERS, '--dist', 'loadfile', '--durations', '10')


if __name__ == '__main__': main()
