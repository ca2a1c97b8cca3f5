"""Damaged files for every reader: a result or one `InputError`, soon, in little memory.

    python tools/fuzz.py --inputs 100000 --workers 2   # a night's work
    python tools/fuzz.py --inputs 2000 --only model    # or spectra, basis, runs, result, answers, …
    python tools/fuzz.py --again fuzz-found/NAME       # one of them once more

Faults go to fuzz-found/, and the exit status is 1 if there are any. Input number i of a seed is
always the same. Files are read in processes of their own, so that a crash of the interpreter is one
fault, not the end. Nothing may be written.
Needs Linux: memory is read from /proc and limited by `setrlimit`.
"""

import argparse
import collections
import faulthandler
import importlib
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

SECONDS = 5  # of processor time for one input
MEMORY = 1 << 30  # bytes above those at the start
CEILING = 4 << 30  # bytes above those at the start at which the system says no
HANGS = 120  # elapsed seconds after which a reader is taken to hang
LONGEST_SENTENCE = 1000  # characters
WRITES = {
    'os.mkdir',
    'os.rename',
    'os.remove',
    'os.rmdir',
    'os.symlink',
    'os.link',
    'os.truncate',
    'os.chmod',
    'shutil.rmtree',
    'shutil.move',
    'shutil.copyfile',
}
FORBIDDEN = {
    'pickle.find_class': 'unpickled something',
    'socket.connect': 'called the network',
    'os.system': 'ran a command',
}


# ---- the reading process


def read_spectra(path, options):
    "Spectra that can be used"
    from deepmrs.io import read_spectra

    if path.suffix.lower() in ('.raw', '.h2o'):
        options = {'dwell_time': 5e-4} | options
    found = read_spectra(path, **options)
    _check_signals(found)
    assert len(found.names) == len(found) > 0, 'names and spectra differ in number'
    import numpy as np

    assert (
        found.affine is None or np.shape(found.affine) == (4, 4) and np.isfinite(found.affine).all()
    ), f'affine {found.affine}'


def read_basis(path, options):
    "A basis set that can be used"
    from deepmrs.io import read_basis

    if path.is_dir() and any(p.suffix == '.RAW' for p in path.iterdir()):
        options = {'dwell_time': 5e-4} | options  # which .RAW files don't say
    found = read_basis(path, **options)
    _check_signals(found)
    assert len(found.names) == len(found.fids) > 0, 'names and FIDs differ in number'


def _check_signals(found):
    "Finite numbers, a possible acquisition, texts"
    import math
    import torch

    acq = found.acquisition
    assert bool(torch.isfinite(torch.view_as_real(found.fids)).all()), 'FIDs that are not finite'
    assert acq.points == found.fids.shape[-1] >= 2, 'points and FIDs differ'
    numbers = (
        acq.dwell_time,
        acq.spectrometer_frequency,
        acq.centre_ppm,
        acq.echo_time or 0.0,
        acq.repetition_time or 0.0,
    )
    assert all(isinstance(v, float) and math.isfinite(v) for v in numbers), f'numbers {numbers}'
    assert all(isinstance(n, str) for n in [*found.names, *found.notes, found.describe()]), (
        'texts that are none'
    )
    assert isinstance(acq.nucleus, str), f'nucleus {acq.nucleus!r}'


def describe(path, options):
    "What the command `basis show` prints"
    from deepmrs.io import describe_file

    assert isinstance(describe_file(path), str)


def read_runs(path, options):
    "Run files"
    from deepmrs.config import read_runs

    assert read_runs(path)


def load_model(path, options):
    "A model that reads spectra"
    import torch
    from deepmrs.training import load_model

    model = load_model(path)
    many = max(model.acquisition.points, model.points)
    assert many <= 2**20, 'a model for FIDs longer than any that is read'
    assert model(torch.ones(1, many, dtype=torch.complex64)).shape == (1, model.decoder.layout.size)


def load_result(path, options):
    "A result with its tables"
    from deepmrs.quantify import load_result

    result = load_result(path)
    assert len(result.to_frame()) and len(result.quality()) == len(result)


def read_answers(path, options):
    "A table of answers of another tool"
    from deepmrs.runs import read_answers

    assert read_answers(path, ['NAA', 'Cr'], 2).shape == (2, 2)


def read_lcmodel(path, options):
    from deepmrs.peers import read_lcmodel

    assert len(read_lcmodel(path))


def read_fsl(path, options):
    from deepmrs.peers import read_fsl_mrs

    assert len(read_fsl_mrs(path))


READ = {
    'spectra': read_spectra,
    'basis': read_basis,
    'describe': describe,
    'runs': read_runs,
    'model': load_model,
    'result': load_result,
    'answers': read_answers,
    'lcmodel': read_lcmodel,
    'fsl': read_fsl,
}


class Watch:
    "Notes what is written outside `folder`, and what no reader may do"

    def __init__(self, folder):
        self.folder, self.active, self.seen = str(folder), False, []
        sys.addaudithook(self.hook)

    def hook(self, event, args):
        if not self.active:
            return
        if event in FORBIDDEN:
            self.seen.append(FORBIDDEN[event])
        elif event == 'open':
            path, _, flags = args
            if (
                isinstance(path, (str, bytes, os.PathLike))
                and isinstance(flags, int)
                and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            ):
                self.place(path)
        elif event in WRITES and isinstance(args[0], (str, bytes, os.PathLike)):
            self.place(args[0])

    def place(self, path):
        place = os.path.abspath(os.fsdecode(path))
        if place != os.devnull and not place.startswith(self.folder + os.sep):
            self.seen.append(f'wrote to {place}')


def _status(field):
    "Bytes that /proc says of this process"
    with open('/proc/self/status') as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(field + ':'))


def _listing(folder):
    "What lies in a folder: paths, sizes, times"
    return sorted(
        (str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns)
        for p in folder.rglob('*')
        if p.is_file()
    )


def _short_of_memory(error):
    "Was it, somewhere in the chain, the memory that gave out?"
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _sentence_fault(text):
    "What is wrong with the sentence of an `InputError`, or None"
    if not text.strip():
        return 'says nothing'
    if len(text) > LONGEST_SENTENCE:
        return f'has {len(text)} characters'
    strange = next((c for c in text if not c.isprintable()), None)
    return None if strange is None else f'holds the character {strange!r}'


def _attempt(reader, path, options):
    "(kind, text): 'ok', 'refused' and the sentence, or a fault and where it was"
    from deepmrs.core import InputError

    try:
        READ[reader](path, options)
        return 'ok', ''
    except InputError as error:
        if _short_of_memory(error):
            return (
                'memory',
                f'asked for more than {CEILING >> 30} GB and was refused: {str(error)[:200]}',
            )
        wrong = _sentence_fault(str(error))
        if wrong:
            return 'sentence', f'the sentence {wrong}: {str(error)[:200]!r}\n' + ''.join(
                traceback.format_exception(error)[-2:]
            )
        return 'refused', str(error)
    except AssertionError:
        return 'unusable', traceback.format_exc()
    except MemoryError:
        return 'memory', traceback.format_exc()
    except Exception:
        return 'traceback', traceback.format_exc()


def work(connection, home):
    "Read one input after the other, as they come through the connection"
    home = Path(home)
    scratch, watch = home / 'tmp', Watch(home)
    tempfile.tempdir = str(scratch)
    os.chdir(home)
    for module in ('config', 'io', 'peers', 'quantify', 'runs', 'training'):
        importlib.import_module(f'deepmrs.{module}')

    faulthandler.enable(open(home / 'crash', 'w'))
    start = _status('VmRSS')
    most = _status('VmSize') + CEILING
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    connection.send('ready')
    while True:
        try:
            reader, main, options = connection.recv()
        except EOFError:
            return
        Path('/proc/self/clear_refs').write_text('5')  # the peak of the memory begins anew
        before, there, began = _listing(home / 'input'), set(scratch.iterdir()), _spent()
        watch.seen, watch.active = [], True
        kind, text = _attempt(reader, home / 'input' / main, options)
        watch.active = False
        spent, grown = _spent() - began, _status('VmHWM') - start
        faults = list(dict.fromkeys(watch.seen))
        if _listing(home / 'input') != before:
            faults.append('changed the files that it read')
        left = sorted(p.name for p in set(scratch.iterdir()) - there)
        if left:
            faults.append(f'left {left} in the folder for temporary files')
        if faults:
            kind, text = 'wrote', '; '.join(faults)
        elif kind in ('ok', 'refused') and spent > SECONDS:
            kind, text = 'slow', f'took {spent:.1f} s ({kind}: {text[:200]})'
        elif kind in ('ok', 'refused') and grown > MEMORY:
            kind, text = 'memory', f'took {grown / 2**30:.1f} GB ({kind}: {text[:200]})'
        connection.send((kind, text, spent, grown))


def _spent():
    "Seconds of processor time of this process and of those that it started and that ended"
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system


# ---- the process that hands out inputs


class Worker:
    "A reading process, begun anew when it has died or hangs"

    def __init__(self):
        self.home = Path(tempfile.mkdtemp(prefix='fuzz_')).resolve()
        self.process = None

    def begin(self):
        for name in ('tmp', 'input'):
            (self.home / name).mkdir(exist_ok=True)
        self.connection, theirs = Pipe()
        env = os.environ | {
            'OMP_NUM_THREADS': '1',
            'MPLBACKEND': 'Agg',
            'TMPDIR': str(self.home / 'tmp'),
            'PYTHONDONTWRITEBYTECODE': '1',
        }
        command = [sys.executable, __file__, '--worker', str(theirs.fileno()), str(self.home)]
        self.process = subprocess.Popen(
            command,
            env=env,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        if not self.connection.poll(HANGS) or self.connection.recv() != 'ready':
            raise RuntimeError('the reading process does not start')

    def __call__(self, reader, files, main, options):
        "(kind, text, processor seconds, bytes of memory) for one input"
        if self.process is None:
            self.begin()
        shutil.rmtree(self.home / 'input')
        put(files, self.home / 'input')
        self.connection.send((reader, main, options))
        try:
            if self.connection.poll(HANGS):
                return self.connection.recv()
            kind, text = 'hangs', f'no answer after {HANGS} s'
        except EOFError:
            kind, text = (
                'crash',
                f'the interpreter died (exit status {self.process.wait()}):\n'
                + (self.home / 'crash').read_text()[:2000],
            )
        self.end()
        return kind, text, 0.0, 0

    def end(self):
        "End the process with all that it started"
        if self.process is not None:
            self.connection.close()
            try:
                os.killpg(self.process.pid, 9)
            except ProcessLookupError:
                pass
            self.process.wait()
            self.process = None

    def close(self):
        self.end()
        shutil.rmtree(self.home, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def put(files, folder):
    "Write {path: bytes} into a new folder"
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


class Inputs:
    "Makes inputs from the corpus: every reader and format as often as the others"

    def __init__(self, cases, only=()):
        cases = [c for c in cases if not only or c.reader in only]
        self.hostile = [c for c in cases if c.as_it_is]
        self.small_hostile = [c for c in self.hostile if sum(map(len, c.files.values())) < 3000]
        self.groups = collections.defaultdict(list)
        for c in cases:
            if not c.as_it_is:
                self.groups[c.reader, Path(c.main).suffix.lower()].append(c)
        self.all_files = [
            data for cases in self.groups.values() for c in cases for data in c.files.values()
        ]

    def __call__(self, rnd):
        "(name, reader, files, main, options) by the choices of a `random.Random`"
        from fuzz_mutate import damage

        group = self.groups[rnd.choice(list(self.groups))]
        if self.small_hostile and rnd.random() < 0.05:
            group = self.small_hostile
        case = rnd.choice(group)
        files, options, reader = dict(case.files), {}, case.reader
        name = rnd.choice(list(case.damaged or files))
        files[name] = damage(files[name], case.form(name), rnd, rnd.choice(self.all_files))
        if name.endswith('.safetensors') and rnd.random() < 0.7:
            _agree(files, name)
        if reader == 'spectra':
            options = rnd.choice(
                [
                    {},
                    {},
                    {},
                    {'dynamics': 'separate'},
                    {'dynamics': 'average'},
                    {'conjugate': True},
                    {'dwell_time': 5e-4, 'spectrometer_frequency': 123.2},
                ]
            )
        if reader in ('spectra', 'basis') and rnd.random() < 0.15:
            reader, options = 'describe', {}
        return case.name, reader, files, case.main, options

    def number(self, seed, i):
        "Input i of a seed; the hostile ones come first, as they are"
        if i < len(self.hostile):
            c = self.hostile[i]
            return c.name, c.reader, c.files, c.main, {}
        return self(random.Random(f'{seed} {i}'))


def corpus():
    "All good and all hostile files, see `fuzz_corpus`"
    import fuzz_corpus

    with tempfile.TemporaryDirectory() as folder:
        return fuzz_corpus.corpus(Path(folder))


def _agree(files, name):
    "Give the card beside a damaged file of numbers the checksum that fits"
    import hashlib

    card = name.replace('.safetensors', '.json')
    if card in files:
        files[card] = re.sub(
            rb'("checksum": ")[0-9a-f]*',
            rb'\g<1>' + hashlib.sha256(files[name]).hexdigest().encode(),
            files[card],
        )


def label(kind, reader, main, text):
    "What tells one fault from another: kind, reader, the deepest line of deepmrs, the error"
    frames = re.findall(r'deepmrs/(\w+)\.py", line \d+(?:,)? in (\w+)', text)
    last = text.strip().splitlines()[-1] if kind == 'traceback' else ''
    error = re.match(r'[\w.]+', last)[0].rpartition('.')[2] if last else ''
    where = '.'.join(frames[-1]) if frames else Path(main).suffix.lstrip('.')
    return re.sub(r'[^\w.-]', '_', '_'.join(filter(None, [kind, reader, where, error])))


class Findings:
    "Faults, each distinct one kept once with the files that show it"

    def __init__(self, out):
        self.out, self.counts, self.many, self.lock = (
            Path(out),
            collections.Counter(),
            collections.Counter(),
            threading.Lock(),
        )
        self.slowest, self.largest = 0.0, 0

    def add(self, about, files, answer):
        kind, text, spent, grown = answer
        name = label(kind, about['reader'], about['main'], text)
        with self.lock:
            self.counts[about['reader'], kind] += 1
            self.slowest, self.largest = max(self.slowest, spent), max(self.largest, grown)
            if kind in ('ok', 'refused'):
                return
            self.many[name] += 1
            place = self.out / name
            if not place.exists():
                put(files, place / 'input')
                (place / 'about.json').write_text(
                    json.dumps(about | {'kind': kind, 'text': text}, indent=1)
                )
                print(f'✗ {name}: {text.strip().splitlines()[-1][:200]}', flush=True)

    def report(self):
        "Counts, then each distinct fault"
        lines = [f'{r:10s} {k:10s} {n}' for (r, k), n in sorted(self.counts.items())]
        lines.append(
            f'{sum(self.counts.values())} inputs, {sum(self.many.values())} faults, '
            f'{len(self.many)} distinct; at most {self.slowest:.1f} s and '
            f'{self.largest / 2**20:.0f} MB above the start'
        )
        lines += [f'{n:6d} × {name}' for name, n in self.many.most_common()]
        return '\n'.join(lines)


def hunt(count, workers, seed, out, only=()):
    "Read `count` inputs in several processes; returns the `Findings`"
    inputs, findings, numbers = Inputs(corpus(), only), Findings(out), iter(range(count))
    lock, errors, start = threading.Lock(), [], time.monotonic()

    def hand_out():
        with Worker() as worker:
            while not errors:
                with lock:
                    i = next(numbers, None)
                if i is None:
                    return
                name, reader, files, main, options = inputs.number(seed, i)
                about = {
                    'seed': seed,
                    'number': i,
                    'case': name,
                    'reader': reader,
                    'main': main,
                    'options': options,
                }
                findings.add(about, files, worker(reader, files, main, options))
                if i % 5000 == 4999:
                    print(f'{i + 1} inputs, {time.monotonic() - start:.0f} s', flush=True)

    def guarded():
        try:
            hand_out()
        except BaseException:
            errors.append(traceback.format_exc())

    threads = [threading.Thread(target=guarded, daemon=True) for _ in range(workers)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if errors:
        sys.exit(errors[0])
    return findings


def again(folder):
    "Read one kept input once more; returns the answer"
    folder = Path(folder)
    about = json.loads((folder / 'about.json').read_text())
    files = {
        str(p.relative_to(folder / 'input')): p.read_bytes()
        for p in (folder / 'input').rglob('*')
        if p.is_file()
    }
    with Worker() as worker:
        return worker(about['reader'], files, about['main'], about['options'])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--inputs', type=int, default=100_000)
    parser.add_argument('--workers', type=int, default=os.cpu_count())
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', default='fuzz-found', help='folder for the faults')
    parser.add_argument('--only', nargs='*', default=(), choices=list(READ), help='readers')
    parser.add_argument('--again', metavar='FOLDER', help='read one kept input once more')
    parser.add_argument('--worker', nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        return work(Connection(int(given.worker[0])), given.worker[1])
    if given.again:
        kind, text, *_ = again(given.again)
        print(kind, text, sep='\n')
        sys.exit(kind not in ('ok', 'refused'))
    findings = hunt(given.inputs, given.workers, given.seed, given.out, given.only)
    print(findings.report())
    sys.exit(bool(findings.many))


if __name__ == '__main__':
    main()
