"A folder of results is replaced as a whole or not at all, by one writer at a time; nothing is written outside it, nobody's files are lost, and what it holds can be repeated."
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import deepmrs.cli as cli
import deepmrs.outputs as outputs
from deepmrs.basis import Basis
from deepmrs.core import Acquisition, InputError, Spectra
from deepmrs.io import read_basis, read_spectra, write_basis, write_spectra
from deepmrs.outputs import FORMULA, mrs_header, one_writer, own_files, read_table, replacing_folder, safe_names
from deepmrs.quantify import load_result, quantify
from deepmrs.report import report

ACQ = Acquisition(2.5e-4, 123.2, 1024, echo_time=.03)
LINES = {'NAA': [(2.008, 3)], 'Cr': [(3.027, 3), (3.913, 2)], 'GPC': [(3.212, 9)], 'Ins': [(3.52, 2), (3.61, 2)]}
AMOUNTS = torch.tensor([12., 8., 1.5, 6.])
FAST = ('--preset', 'none', '--no-posterior')
ROOT = Path(__file__).parents[1]


def singlets(names=tuple(LINES)):
    t = ACQ.time_axis(dtype=torch.float64)
    fids = torch.stack([sum(h*torch.exp((2j*math.pi*ACQ.to_hz(p) - 4)*t) for p, h in lines) for lines in LINES.values()])
    return Basis(fids, list(names), acquisition=ACQ)


def brain(n=1, seed=0, **more):
    "n spectra [n, 1024] with known amounts and a little noise"
    g = torch.Generator().manual_seed(seed)
    fids = (AMOUNTS.to(torch.complex64) @ singlets().fids).expand(n, -1)
    return Spectra(fids + .3*torch.randn(n, ACQ.points, dtype=torch.complex64, generator=g), acquisition=ACQ, **more)


def volume(): return Spectra(brain(4).fids.reshape(2, 2, 1, -1), acquisition=ACQ, affine=np.diag([8., 8, 12, 1]))


def call(*args):
    "(exit status, all that was printed) of a command"
    r = CliRunner().invoke(cli.app, [str(a) for a in args])
    if isinstance(r.exception, InputError): return 1, f'deepmrs: {r.exception}\n'
    assert r.exception is None or isinstance(r.exception, SystemExit), r.exception
    return r.exit_code, r.output


def listing(folder): return sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file())


@pytest.fixture
def data(tmp_path):
    "A folder with b.npz and two subjects, each with a spectrum and a water reference"
    d = tmp_path/'data'
    for i in (1, 2):
        (d/f'sub-0{i}').mkdir(parents=True)
        write_spectra(brain(seed=i), d/f'sub-0{i}/svs.nii.gz')
        water = 500*torch.exp(-15*ACQ.time_axis())
        write_spectra(Spectra(water[None].to(torch.complex64), acquisition=ACQ), d/f'sub-0{i}/ref.nii.gz')
    write_basis(singlets(), d/'b.npz')
    return d


# ---- whole or not at all

def die(*args, **kw): os.kill(os.getpid(), signal.SIGKILL)


def write_new(out, step, place):
    "Replace results; be killed at a step"
    if place == 'two renames': outputs._exchange = lambda *args: False
    if place == 'current': os.chdir(out)
    if step == 'after the first rename':
        rename = os.rename
        def once(one, other): rename(one, other); die()
        os.rename = once
    elif step == 'after the swap': outputs._clear = die
    elif step.startswith('_'): setattr(outputs, step, die)
    with replacing_folder(out, overwrite=True) as new:
        if step == 'before': die()
        for k in range(3): (new/f'{k}.txt').write_text('new')
        if step == 'files': die()
        (new/'run.json').write_text(json.dumps({'deepmrs': '0', 'method': 'fit', 'files': ['0.txt', '1.txt', '2.txt']}))


def child(*args):
    "Exit status of `write_new` in a process of its own"
    pid = os.fork()
    if pid == 0:
        try: write_new(*args)
        except BaseException as e:
            print(repr(e), flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def filled(out, text='old', files=('0.txt', '1.txt', 'concs/raw/NAA.nii.gz')):
    "A folder of earlier results, with notes of somebody"
    for f in files:
        (out/f).parent.mkdir(parents=True, exist_ok=True)
        (out/f).write_text(text)
    (out/'run.json').write_text(json.dumps({'deepmrs': '0', 'method': 'fit', 'files': list(files)}))
    (out/'notes.txt').write_text('mine')


@pytest.mark.parametrize('place', ['exchange', 'two renames'])
@pytest.mark.parametrize('step', ['before', 'files', '_carry_over', '_sync', '_swap', 'after the first rename', 'after the swap'])
def test_killed_at_any_step(step, place, tmp_path):
    "The old results or the new ones, never both; the next run mends what is left, and somebody's notes stay"
    if step == 'after the first rename' and place == 'exchange': pytest.skip('there are no two renames')
    out = tmp_path/'deep'/'out'
    filled(out)
    assert child(out, step, place) == -signal.SIGKILL
    old, new = ['0.txt', '1.txt', 'concs/raw/NAA.nii.gz', 'notes.txt', 'run.json'], ['0.txt', '1.txt', '2.txt', 'notes.txt', 'run.json']
    if step == 'after the first rename': assert not out.exists()  # mended below; without an exchange there is no other way
    else: assert listing(out) == (new if step == 'after the swap' else old) and (out/'0.txt').read_text() == ('new' if step == 'after the swap' else 'old')
    assert child(out, 'none', place) == 0
    assert listing(out) == new and {(out/f'{k}.txt').read_text() for k in range(3)} == {'new'} and (out/'notes.txt').read_text() == 'mine'
    assert [p.name for p in out.parent.iterdir()] == ['out'], 'something was left beside the folder'


@pytest.mark.parametrize('step', ['before', 'files', '_sync', '_move_in', '_drop', 'none'])
def test_the_current_folder(step, tmp_path):
    "It can't change places; a broken write is known as such, and the next one mends it"
    out = tmp_path/'out'
    filled(out)
    inode = out.stat().st_ino
    assert child(out, step, 'current') == (0 if step == 'none' else -signal.SIGKILL)
    if step == '_drop':
        with pytest.raises(InputError, match='broken off'): load_result(out)
    elif step != 'none': assert (out/'0.txt').read_text() == 'old' and 'concs/raw/NAA.nii.gz' in listing(out)
    assert child(out, 'none', 'current') == 0
    assert listing(out) == ['0.txt', '1.txt', '2.txt', 'notes.txt', 'run.json'] and out.stat().st_ino == inode and (out/'0.txt').read_text() == 'new'
    assert [p.name for p in tmp_path.iterdir()] == ['out'] and not (out/'concs').exists()


PROGRAM = '''
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
import deepmrs.quantify
q = sys.modules['deepmrs.quantify']
write, mark = q.write_files, Path(sys.argv.pop())
def slow(result, folder, final=None):
    files = write(result, folder, final)
    mark.touch()
    time.sleep(60)
    return files
q.write_files = slow
from deepmrs.cli import main
sys.argv[0] = 'deepmrs'
main()
'''


def program(*args, mark=None):
    "The program, begun; with a mark it waits after writing until it is killed"
    code = PROGRAM if mark else 'from deepmrs.cli import main; main()'
    return subprocess.Popen([sys.executable, '-c', code, *map(str, args), *([str(mark)] if mark else [])], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)})


def wait_for(path, process):
    end = time.time() + 60
    while not path.exists() and process.poll() is None and time.time() < end: time.sleep(.05)
    assert path.exists(), process.communicate()


@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_the_program_killed_while_it_overwrites_a_volume(how, data, tmp_path):
    "A single voxel over a volume: first nothing of it, then nothing of the volume; status 0 for the run after the kill"
    out = tmp_path/'out'
    quantify(volume(), singlets(), preset='none', posterior=False).save(out)
    before = {f: (out/f).read_bytes() for f in listing(out)}
    args = ('quantify', data/'sub-01/svs.nii.gz', '--basis', data/'b.npz', '--out', out, '--overwrite', *FAST)
    p = program(*args, mark=tmp_path/'now')
    wait_for(tmp_path/'now', p)
    rival = program(*args)
    assert 'Another program is writing' in rival.communicate()[1] and rival.returncode == 1
    p.send_signal(how)
    printed, said = p.communicate()
    assert p.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[how] and 'Traceback' not in said
    if how == signal.SIGINT: assert said == 'deepmrs: stopped by the keyboard; 0 of 1 files were done, and what was finished is kept.\n'
    assert {f: (out/f).read_bytes() for f in listing(out)} == before
    again = program(*args)
    printed, said = again.communicate()
    assert again.returncode == 0 and said == ''
    assert listing(out) == ['concentrations.csv', 'fit.nii.gz', 'quality.csv', 'report.html', 'result.safetensors', 'run.json']
    assert abs(read_table(out/'concentrations.csv').set_index('metabolite').amplitude['NAA'] - 12) < .3
    assert {p.name for p in tmp_path.iterdir()} == {'data', 'out', 'now'}


def test_a_full_disk_keeps_the_old_results(tmp_path, monkeypatch):
    r = quantify(brain(), singlets(), preset='none', posterior=False)
    r.save(tmp_path/'out')
    before = {f: (tmp_path/'out'/f).read_bytes() for f in listing(tmp_path/'out')}
    def full(*args, **kw): raise OSError(28, 'No space left on device')
    for place in ('_sync', '_carry_over', '_swap'):
        with monkeypatch.context() as m:
            m.setattr(outputs, place, full)
            with pytest.raises(InputError, match='No space'): r.save(tmp_path/'out', overwrite=True)
        assert {f: (tmp_path/'out'/f).read_bytes() for f in listing(tmp_path/'out')} == before
    r.save(tmp_path/'out', overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ['out']


# ---- one writer, and whose files

def test_one_writer_at_a_time(tmp_path):
    with one_writer(tmp_path/'out'):
        with pytest.raises(InputError, match='Another program'): quantify(brain(), singlets(), preset='none', posterior=False).save(tmp_path/'out')
    lock = tmp_path/'.out.lock'
    p = subprocess.Popen([sys.executable, '-c', 'import sys, time; from deepmrs.outputs import one_writer\nwith one_writer(sys.argv[1]): print("locked", flush=True); time.sleep(60)', str(tmp_path/'out')],
                         stdout=subprocess.PIPE, text=True, env=os.environ | {'PYTHONPATH': str(ROOT)})
    assert p.stdout.readline() == 'locked\n'
    with pytest.raises(InputError, match='Another program'):
        with replacing_folder(tmp_path/'out'): pass
    p.kill(); p.wait(); p.stdout.close()
    assert lock.exists()  # a name is left, but nobody holds it
    with replacing_folder(tmp_path/'out') as new: (new/'x').write_text('x')
    assert sorted(f.name for f in tmp_path.iterdir()) == ['out']


def test_earlier_results_need_a_word(data, tmp_path):
    out, args = tmp_path/'out', ('quantify', data/'sub-01/svs.nii.gz', '--basis', data/'b.npz', *FAST)
    assert call(*args, '--out', out)[0] == 0
    before = {f: (out/f).read_bytes() for f in listing(out)}
    status, text = call(*args, '--out', out)
    assert status == 1 and '--overwrite' in text and len(text.splitlines()) == 1 and {f: (out/f).read_bytes() for f in listing(out)} == before
    result = load_result(out)
    with pytest.raises(InputError, match='overwrite=True'): result.save(out)
    assert len(result.save(out, overwrite=True)) == 5 and 'report.html' not in listing(out)  # the page was of the run before


def test_files_of_others_stay(data, tmp_path):
    out = tmp_path/'out'
    (out/'sub/empty').mkdir(parents=True); (out/'sub/notes.txt').write_text('mine'); (out/'link').symlink_to('sub/notes.txt')
    quantify(volume(), singlets(), preset='none', posterior=False).save(out)
    (out/'concs/mask.nii.gz').write_text('mine')
    assert call('quantify', data/'sub-01/svs.nii.gz', '--basis', data/'b.npz', '--out', out, '--overwrite', *FAST)[0] == 0
    assert [f for f in listing(out) if f not in own_files(out)] == ['concs/mask.nii.gz', 'link', 'sub/notes.txt'] and os.readlink(out/'link') == 'sub/notes.txt'
    assert (out/'sub/notes.txt').read_text() == 'mine' and not (out/'concs/raw').exists()


def test_somebody_elses_table_is_not_overwritten(tmp_path):
    (tmp_path/'out').mkdir()
    (tmp_path/'out/quality.csv').write_text('mine')
    with pytest.raises(InputError, match='quality.csv would be overwritten'): quantify(brain(), singlets(), preset='none', posterior=False).save(tmp_path/'out')
    assert listing(tmp_path) == ['out/quality.csv'] and (tmp_path/'out/quality.csv').read_text() == 'mine'


def test_a_batch_and_a_single_input_do_not_mix(data, tmp_path):
    one, two = data/'sub-01/svs.nii.gz', data/'sub-02/svs.nii.gz'
    assert call('quantify', one, two, '--basis', data/'b.npz', '--out', tmp_path/'batch', *FAST)[0] == 0
    status, text = call('quantify', one, two, '--basis', data/'b.npz', '--out', tmp_path/'batch', *FAST)
    assert status == 1 and '2 of the 2 inputs' in text and '--overwrite' in text
    assert 'several inputs' in call('quantify', one, '--basis', data/'b.npz', '--out', tmp_path/'batch', *FAST)[1]
    assert call('quantify', one, '--basis', data/'b.npz', '--out', tmp_path/'single', *FAST)[0] == 0
    assert 'results of one input' in call('quantify', one, two, '--basis', data/'b.npz', '--out', tmp_path/'single', *FAST)[1]
    (data/'sub-01/svs.nii.gz').write_bytes(b'no')
    kept = (tmp_path/'batch/sub-01_svs/run.json').read_bytes()
    assert call('quantify', one, two, '--basis', data/'b.npz', '--out', tmp_path/'batch', '--overwrite', *FAST)[0] == 1
    assert (tmp_path/'batch/sub-01_svs/run.json').read_bytes() == kept  # what failed leaves what was there


# ---- names

def test_hostile_names_of_metabolites(tmp_path):
    names = ['../../out', '=cmd|x', 'naa', 'NAA']
    r = quantify(volume(), singlets(names), preset='none', posterior=False)
    r.save(tmp_path/'a'/'out')
    assert [p.name for p in tmp_path.iterdir()] == ['a'] and [p.name for p in (tmp_path/'a').iterdir()] == ['out']
    maps = {f.name for f in (tmp_path/'a/out/concs/raw').iterdir()}
    assert len({m.lower() for m in maps}) == len(maps) == 4 + 1  # and tNAA
    table = read_table(tmp_path/'a/out/concentrations.csv')
    assert list(table.metabolite[:4]) == names and list(load_result(tmp_path/'a/out').to_frame().metabolite[:4]) == names
    cells = pd.read_csv(tmp_path/'a/out/concentrations.csv')
    assert not any(str(c).startswith(FORMULA) for c in cells.metabolite) and np.allclose(cells.amplitude, r.to_frame().amplitude)
    renamed = json.loads((tmp_path/'a/out/run.json').read_text())['map_names']
    values = nib.load(tmp_path/f'a/out/concs/raw/{renamed["=cmd|x"]}.nii.gz').get_fdata()
    assert np.allclose(values.ravel(), r.amplitudes[:, 1].numpy(), rtol=1e-5)


@pytest.mark.parametrize('name', ['', '.', '..', 'con', 'COM1.x', 'a'*400, 'é'*200, 'a\0b', '\ud800', 'x/../y', ' ', '~', '-rf', '*?', '\\\\server\\x'])
def test_safe_names(name, tmp_path):
    safe, other = safe_names([name, name])
    assert safe.lower() != other.lower()
    for n in (safe, other):
        (tmp_path/f'{n}.nii.gz').write_text('x')
        assert n and not n.startswith('.') and Path(n).name == n and len(n.encode()) <= 110
    assert len(list(tmp_path.iterdir())) == 2


def test_names_of_spectra_are_no_formulas(tmp_path):
    r = quantify(brain(2, names=['=1+1', '@x']), singlets(), preset='none', posterior=False)
    r.save(tmp_path/'out')
    for f in ('concentrations.csv', 'quality.csv'):
        assert all(v.startswith("'") for v in pd.read_csv(tmp_path/'out'/f).spectrum) and set(read_table(tmp_path/'out'/f).spectrum) == {'=1+1', '@x'}


# ---- which files are data

def test_results_are_no_data(data, tmp_path):
    "A folder with data and earlier results in it; results alone; a result under another name"
    folder = data/'sub-01'
    assert call('quantify', folder, '--basis', data/'b.npz', '--out', folder, *FAST)[0] == 0 and 'fit.nii.gz' in listing(folder)
    status, text = call('quantify', folder, '--basis', data/'b.npz', '--out', tmp_path/'again', *FAST)
    assert status == 0 and json.loads((tmp_path/'again/run.json').read_text())['inputs']['spectra']['path'] == str(folder/'svs.nii.gz')
    assert (tmp_path/'again/concentrations.csv').read_bytes() == (folder/'concentrations.csv').read_bytes()
    status, text = call('quantify', tmp_path/'again', '--basis', data/'b.npz', '--out', tmp_path/'o', *FAST)
    assert status == 1 and 'only results of deepmrs' in text and not (tmp_path/'o').exists()
    shutil.copy(tmp_path/'again/fit.nii.gz', data/'sub-02/brain.nii.gz')
    assert 'result of deepmrs' in call('quantify', data/'sub-02/brain.nii.gz', '--basis', data/'b.npz', '--out', tmp_path/'o', *FAST)[1]
    assert call('quantify', data/'sub-02', '--basis', data/'b.npz', '--out', tmp_path/'o', *FAST)[0] == 0
    assert read_table(tmp_path/'o/concentrations.csv').spectrum.unique().tolist() == ['svs']
    shutil.copy(folder/'svs.nii.gz', data/'sub-02/fit.nii.gz')  # a measured file of that name is data
    assert [f.name for f in cli.inputs([data/'sub-02'])] == ['fit.nii.gz', 'ref.nii.gz', 'svs.nii.gz']


def test_a_folder_with_its_water_reference(data, tmp_path):
    status, text = call('quantify', data/'sub-01', data/'sub-02', '--basis', data/'b.npz', '--out', tmp_path/'out', *FAST)
    assert status == 0 and sorted(p.name for p in (tmp_path/'out').iterdir()) == ['sub-01_svs', 'sub-02_svs'] and text.count('taken as its water reference') == 2
    for s in ('sub-01', 'sub-02'):
        run = json.loads((tmp_path/f'out/{s}_svs/run.json').read_text())
        assert run['inputs']['water']['path'] == str(data/s/'ref.nii.gz') and any('water reference ref.nii.gz' in n for n in run['notes'])
        for f in ('concentrations.csv', 'quality.csv'): assert read_table(tmp_path/f'out/{s}_svs'/f).spectrum.unique().tolist() == [f'{s}_svs']
    status, text = call('quantify', data/'sub-01', '--water', 'none', '--basis', data/'b.npz', '--out', tmp_path/'dry', *FAST)
    assert status == 0 and 'water' not in json.loads((tmp_path/'dry/run.json').read_text())['inputs']
    status, text = call('quantify', data/'sub-01/svs.nii.gz', data/'sub-02/svs.nii.gz', '--water', '{folder}/r?f.nii.gz', '--basis', data/'b.npz', '--out', tmp_path/'pattern', *FAST)
    assert status == 0 and (tmp_path/'pattern/sub-01_svs/concentrations.csv').read_bytes() == (tmp_path/'out/sub-01_svs/concentrations.csv').read_bytes()
    assert call('quantify', data/'sub-01', '--water', data/'sub-01/ref.nii.gz', '--basis', data/'b.npz', '--out', tmp_path/'named', *FAST)[0] == 0
    status, text = call('quantify', data/'sub-01/svs.nii.gz', '--water', '{folder}/no*.nii.gz', '--basis', data/'b.npz', '--out', tmp_path/'lost', *FAST)
    assert status == 1 and 'fits 0 files' in text and not (tmp_path/'lost').exists()


def test_the_header_knows_a_reference(data, tmp_path):
    "WaterSuppressed goes before the name"
    (tmp_path/'in').mkdir()
    for name, wet in (('scan_a.nii.gz', False), ('scan_water.nii.gz', True)):
        s = brain()
        s.header['WaterSuppressed'] = wet
        write_spectra(s, tmp_path/'in'/name)
    assert cli.is_reference(tmp_path/'in/scan_a.nii.gz') and not cli.is_reference(tmp_path/'in/scan_water.nii.gz')
    assert [f.name for f in cli.data_and_references(cli.inputs([tmp_path/'in']))[0]] == ['scan_water.nii.gz']


# ---- once more

def test_rerun(data, tmp_path, monkeypatch):
    out, again = tmp_path/'out', tmp_path/'again'
    assert call('quantify', data/'sub-01', '--basis', data/'b.npz', '--out', out, '--baseline', 'off', '--no-posterior', '--centre-ppm', 4.66)[0] == 0
    run = json.loads((out/'run.json').read_text())
    assert {'spectra', 'basis', 'water'} == set(run['inputs']) and all(len(v['sha256']) == 64 for v in run['inputs'].values()) and {'numpy', 'torch', 'scipy', 'nibabel', 'nifti-mrs', 'platform'} <= set(run['versions'])
    for word in ('--baseline off', '--centre-ppm 4.66', '--no-posterior', str(data/'sub-01/svs.nii.gz'), str(data/'sub-01/ref.nii.gz'), str(data/'b.npz')): assert word in run['command']
    monkeypatch.chdir(tmp_path)
    status, text = call('quantify', '--rerun', 'out/run.json', '--out', again)
    assert status == 0 and 'the same as before' in text and (again/'concentrations.csv').read_bytes() == (out/'concentrations.csv').read_bytes()
    assert '--overwrite' in call('quantify', '--rerun', out/'run.json')[1]
    assert call('quantify', '--rerun', out/'run.json', '--overwrite')[0] == 0
    assert 'leave baseline out' in call('quantify', '--rerun', out/'run.json', '--baseline', 'stiff', '--out', tmp_path/'o')[1]
    shutil.move(data, tmp_path/'moved'); shutil.move(tmp_path/'moved', tmp_path/'all'); (tmp_path/'all/res').mkdir()
    assert 'not there any more' in call('quantify', '--rerun', out/'run.json', '--out', tmp_path/'o')[1]


def test_rerun_of_what_moved_together(data, tmp_path):
    "Data and results in one folder that is moved as a whole are found again"
    assert call('quantify', data/'sub-01/svs.nii.gz', '--basis', data/'b.npz', '--out', data/'res', *FAST)[0] == 0
    shutil.move(data, tmp_path/'elsewhere')
    status, text = call('quantify', '--rerun', tmp_path/'elsewhere/res/run.json', '--out', tmp_path/'o')
    assert status == 0 and 'the same as before' in text


@pytest.mark.parametrize('which', ['sub-01/svs.nii.gz', 'sub-01/ref.nii.gz', 'b.npz', 'mm.npz'])
def test_rerun_names_what_changed(which, data, tmp_path):
    t = ACQ.time_axis()
    write_basis(Basis(torch.exp((2j*math.pi*ACQ.to_hz(.9) - 80)*t)[None], ['MM'], acquisition=ACQ), data/'mm.npz')
    assert call('quantify', data/'sub-01', '--basis', data/'b.npz', '--measured', data/'mm.npz', '--out', tmp_path/'out', *FAST)[0] == 0
    with open(data/which, 'ab') as f: f.write(b' ')
    status, text = call('quantify', '--rerun', tmp_path/'out/run.json', '--out', tmp_path/'again')
    assert status == 1 and f'{data/which} has changed' in text and len(text.splitlines()) == 1 and not (tmp_path/'again').exists()


def test_rerun_of_a_model(tmp_path):
    from deepmrs.demo import demo_spectra
    from deepmrs.training import load_model, save_model
    model = load_model('default')
    write_spectra(demo_spectra(model.decoder, 2)[0], tmp_path/'s.npz')
    save_model(model, tmp_path/'model')
    for name, word in (('default', 'default'), (str(tmp_path/'model'), str(tmp_path/'model'))):
        out = tmp_path/('a' if name == 'default' else 'b')
        assert call('quantify', tmp_path/'s.npz', '--model', name, '--no-posterior', '--out', out)[0] == 0
        assert json.loads((out/'run.json').read_text())['inputs']['model']['path'] == word
        assert 'the same as before' in call('quantify', '--rerun', out, '--out', tmp_path/f'again_{out.name}')[1]
    (tmp_path/'model/model.json').write_text((tmp_path/'model/model.json').read_text() + ' ')
    assert 'model.json' in call('quantify', '--rerun', tmp_path/'b', '--out', tmp_path/'o')[1]


def test_rerun_of_a_quantification_in_python(data, tmp_path):
    r = quantify(data/'sub-01/svs.nii.gz', data/'b.npz', preset='none', baseline='off', posterior=False)
    r.save(tmp_path/'out')
    status, text = call('quantify', '--rerun', tmp_path/'out/run.json', '--out', tmp_path/'again')
    assert status == 0 and 'the same as before' in text
    from deepmrs.model import adapt
    r = quantify(read_spectra(data/'sub-01/svs.nii.gz'), read_basis(data/'b.npz'), preset=adapt('none', window=(1.5, 4.)), posterior=False)
    r.save(tmp_path/'own')
    assert 'the same as before' in call('quantify', '--rerun', tmp_path/'own/run.json', '--out', tmp_path/'own2')[1]
    quantify(brain(), singlets(), preset='none', posterior=False).save(tmp_path/'arrays')
    status, text = call('quantify', '--rerun', tmp_path/'arrays/run.json', '--out', tmp_path/'o')
    assert status == 1 and 'came from no file' in text
    for bad in (tmp_path/'nothing.json', data/'b.npz', tmp_path): assert call('quantify', '--rerun', bad, '--out', tmp_path/'o')[0] == 1


# ---- Ctrl-C

def test_an_interrupt_keeps_what_is_finished(data, tmp_path, monkeypatch):
    whole, calls = cli.quantify_file, []
    def second(path, *args, **more):
        calls.append(path)
        if len(calls) == 2: raise KeyboardInterrupt
        return whole(path, *args, **more)
    monkeypatch.setattr(cli, 'quantify_file', second)
    status, text = call('quantify', data/'sub-01', data/'sub-02', '--basis', data/'b.npz', '--out', tmp_path/'out', *FAST)
    assert status == 130 and text.splitlines()[-1] == 'deepmrs: stopped by the keyboard; 1 of 2 files were done, and what was finished is kept.'
    assert [p.name for p in (tmp_path/'out').iterdir()] == ['sub-01_svs'] and load_result(tmp_path/'out/sub-01_svs').reasons == ['ok']


# ---- nothing about persons

SECRET = {'PatientName': 'Doe^Jane', 'PatientID': 'ID-4711', 'PatientDoB': '19700131', 'PatientSex': 'F', 'PatientWeight': 61.25, 'InstitutionName': 'Clinic Somewhere', 'InstitutionAddress': 'Main Street 5',
          'OriginalFile': ['Jane_Doe.dat'], 'DeviceSerialNumber': 'SN-99', 'owner': {'Value': 'Doe^Jane', 'Description': 'x'}}


def test_personal_fields_reach_no_output(data, tmp_path):
    known = {'Manufacturer': 'Siemens', 'ManufacturersModelName': 'Prisma', 'SoftwareVersions': 'XA30', 'RxCoil': 'HeadNeck_64', 'SequenceName': 'svs_se', 'InversionTime': .6, 'WaterSuppressed': True}
    s = brain(affine=np.array([[20., 0, 0, -10.5], [0, 25, 0, 5.5], [0, 0, 30, 30.5], [0, 0, 0, 1]]))
    write_spectra(s, tmp_path/'s.nii.gz')
    img = nib.load(tmp_path/'s.nii.gz')
    meta = json.loads(img.header.extensions[0].get_content())
    img.header.extensions[0] = nib.nifti1.Nifti1Extension(44, json.dumps(meta | known | SECRET).encode())
    nib.save(img, tmp_path/'s.nii.gz')
    assert mrs_header(tmp_path/'s.nii.gz')['PatientName'] == 'Doe^Jane'
    assert call('quantify', tmp_path/'s.nii.gz', '--basis', data/'b.npz', '--out', tmp_path/'out', *FAST)[0] == 0
    import gzip
    secrets = ('Doe', 'Jane', '4711', '19700131', '61.25', 'Clinic', 'Main Street', 'SN-99')
    for f in listing(tmp_path/'out'):
        raw = (tmp_path/'out'/f).read_bytes()
        raw = gzip.decompress(raw) if f.endswith('.gz') else raw
        assert not [w for w in secrets if w.encode() in raw], f
    page = (tmp_path/'out/report.html').read_text()
    for word in ('Siemens, Prisma, XA30', 'HeadNeck_64', 'svs_se', '20 × 25 × 30 mm', '10.5 mm left', 'water suppression: yes', 'inversion time 0.6 s'): assert word in page, word
    header = mrs_header(tmp_path/'out/fit.nii.gz')
    assert header['Manufacturer'] == 'Siemens' and header['ProcessingApplied'][-1]['Program'] == 'deepmrs'
    back = load_result(tmp_path/'out')
    assert back.spectra.header['RxCoil'] == 'HeadNeck_64' and back.spectra.path == str(tmp_path/'s.nii.gz')
    report(back, tmp_path/'page')
    assert 'HeadNeck_64' in (tmp_path/'page/report.html').read_text()


def test_averages_are_counted(tmp_path):
    from nifti_mrs.create_nmrs import gen_nifti_mrs_hdr_ext
    from nifti_mrs.hdr_ext import Hdr_Ext
    head = Hdr_Ext(123.2, '1H', dimensions=5)
    head.set_dim_info(0, 'DIM_DYN')
    gen_nifti_mrs_hdr_ext(np.repeat(brain().fids.numpy().reshape(1, 1, 1, -1, 1), 6, -1), 2.5e-4, head).save(str(tmp_path/'x.nii.gz'))
    assert read_spectra(tmp_path/'x.nii.gz', dynamics='average').header['NumberOfTransients'] == 6
