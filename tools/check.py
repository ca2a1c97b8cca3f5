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
MINUTES = 60  # seconds
ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'Agg', 'PATH': f'{BIN}{os.pathsep}{os.environ["PATH"]}'}


def run(*command, cwd=ROOT, limit=5*MINUTES, **env):
    "Run a command; on failure, or after `limit` seconds, end it with all its children and stop"
    child = subprocess.Popen([str(c) for c in command], cwd=cwd, env=ENV | env, stdin=subprocess.DEVNULL, start_new_session=True)
    try: code = child.wait(limit)
    except BaseException as e:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        if not isinstance(e, subprocess.TimeoutExpired): raise
        sys.exit(f'✗ {" ".join(child.args)}: not done after {limit} s')
    if code: sys.exit(f'✗ {" ".join(child.args)}: exit status {code}')


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
    changes_nothing('running the notebooks left or changed', BIN/'nbdev_test', '--n_workers', WORKERS, '--do_print', '--timing', limit=15*MINUTES)
    step('wheel')
    tmp = Path(tempfile.mkdtemp()).resolve()
    try: check_wheel(tmp)
    finally: shutil.rmtree(tmp)
    step('tests')
    run(BIN/'python', '-m', 'pytest', '-n', WORKERS, '--dist', 'loadfile', '--durations', '5', limit=15*MINUTES)


if __name__ == '__main__': main()
