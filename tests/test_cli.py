"The command line: bad input is refused in one sentence and leaves nothing behind, odd but good input is accepted with a sentence on what was done."
import gzip
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.io
import torch
from typer.testing import CliRunner

from deepmrs.basis import Basis
from deepmrs.cli import app, folders, inputs
from deepmrs.core import Acquisition, InputError, Spectra
from deepmrs.demo import healthy_priors
from deepmrs.io import read_spectra, write_basis, write_spectra
from deepmrs.model import adapt, make_decoder
from deepmrs.simulate import Simulator

INVIVO = Path(__file__).parents[2]/'shared/data/invivo'
real = pytest.mark.skipif(not INVIVO.exists(), reason='the real files (../shared/data/invivo) are not here')
LCM = INVIVO/'3T_PRESS_Philips_35ms_noMM.BASIS'
ACQ = Acquisition(2.5e-4, 123.2, 2048, echo_time=.03)
LINES = {'NAA': [(2.008, 3), (2.49, .6), (2.67, .6)], 'Cr': [(3.027, 3), (3.913, 2)], 'GPC': [(3.212, 9)], 'Glu': [(2.35, 2), (2.1, 1), (2.04, 1), (3.75, 1)],
         'Ins': [(3.52, 2), (3.61, 2), (3.27, 1), (4.05, 1)]}
GIVEN = dict(dwell_time=2.5e-4, spectrometer_frequency=123.2, echo_time=.03)


def singlets(acq=ACQ, damping=4.):
    t = acq.time_axis(dtype=torch.float64)
    return Basis(torch.stack([sum(h*torch.exp((2j*math.pi*acq.to_hz(p) - damping)*t) for p, h in ls) for ls in LINES.values()]), list(LINES), acquisition=acq)


def npz(path, fids, **header):
    "An archive as `write_spectra` makes it, with any header"
    np.savez(path, fids=np.asarray(fids), meta=json.dumps(GIVEN | header))
    return path


def call(*args):
    "(exit status, all that was printed) of a command"
    r = CliRunner().invoke(app, [str(a) for a in args])
    if isinstance(r.exception, InputError): return 1, f'deepmrs: {r.exception}\n'  # main prints it so
    assert r.exception is None or isinstance(r.exception, SystemExit), r.exception
    return r.exit_code, r.output


def complaints(text): return [line for line in text.splitlines() if line.startswith('deepmrs: ')]


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A folder with a good spectrum, good.nii.gz, and a basis set, b.npz; and the spectrum"
    d = tmp_path_factory.mktemp('made')
    basis = singlets()
    write_basis(basis, d/'b.npz')
    decoder, _, _ = make_decoder(basis, preset=adapt('brain-3t', baseline='off'))  # a baseline lies on the points of the spectrum; a shift by part of a point would spoil it
    spectra, _ = Simulator(decoder, healthy_priors(decoder), .3).spectra(1, 1)
    write_spectra(spectra, d/'good.nii.gz')
    return d, spectra, basis


def refused(tmp_path, *args, word=''):
    "Run quantify; it must end in one sentence with `word`, a status that is not 0, and leave nothing"
    before = sorted(tmp_path.rglob('*'))
    status, text = call('quantify', *args, '--out', tmp_path/'new'/'out')
    lines = complaints(text)
    assert status == 1 and len(lines) == 1 and text.strip() == lines[0], text
    assert lines[0].endswith(('.', '.)')) and 'Traceback' not in text and 'fault of deepmrs' not in text
    assert word in lines[0], lines[0]
    assert sorted(tmp_path.rglob('*')) == before, 'something was left behind'
    return lines[0]


# ---- refused: the data

BAD = {  # name: (how the FIDs [1, N] change, header, word in the sentence)
    'nan': (lambda x: np.where(np.arange(x.shape[1]) == 5, np.nan, x), {}, 'NaN'),
    'inf': (lambda x: np.where(np.arange(x.shape[1]) == 5, np.inf, x), {}, 'infinite'),
    'zeros': (lambda x: 0*x, {}, 'only zeros'),
    'one_point': (lambda x: x[:, :1], {}, '1 point'),
    'two_points': (lambda x: x[:, :2], {}, 'points'),
    'twenty_points': (lambda x: x[:, :20], {}, 'points'),
    'hundred_points': (lambda x: x[:, :64], {}, 'points'),
    'too_many_points': (lambda x: np.ones((1, 2**20 + 1), np.complex64), {}, '1048576'),
    'too_dense': (lambda x: np.ones((1, 10**6), np.complex64), dict(dwell_time=5e-7), '65536'),
    'nucleus': (lambda x: x, dict(nucleus='31P'), '31P'),
    'field': (lambda x: x, dict(spectrometer_frequency=127.7), '1 %'),
    'narrow': (lambda x: x, dict(dwell_time=5e-3), 'cover'),
    'dwell_in_us': (lambda x: x, dict(dwell_time=250.), 'unit'),
    'field_in_hz': (lambda x: x, dict(spectrometer_frequency=123.2e6), 'unit'),
    'real': (lambda x: x.real, {}, 'complex'),
}


@pytest.mark.parametrize('kind', BAD)
def test_bad_numbers_are_refused(kind, made, tmp_path):
    d, spectra, _ = made
    change, header, word = BAD[kind]
    refused(tmp_path, npz(tmp_path/f'{kind}.npz', change(spectra.fids.numpy()), **header), '--basis', d/'b.npz', word=word)


@pytest.mark.parametrize('ending', ['nii.gz', 'nii', 'RAW', 'txt', 'mat', 'npy', 'npz', 'sdat', 'dcm', 'BASIS', 'xyz'])
@pytest.mark.parametrize('content', [b'', b'hello', b'\x1f\x8b\x08\x00garbage', b'PK\x03\x04garbage', bytes(range(256))*20])
def test_a_file_that_is_not_what_its_name_says(ending, content, made, tmp_path):
    (tmp_path/f'x.{ending}').write_bytes(content)
    refused(tmp_path, tmp_path/f'x.{ending}', '--basis', made[0]/'b.npz', word='x.')


@pytest.mark.parametrize('ending', ['nii.gz', 'RAW', 'txt', 'mat', 'npy', 'npz'])
@pytest.mark.parametrize('share', [.02, .5, .97])
def test_truncated_files(ending, share, made, tmp_path):
    d, spectra, _ = made
    path = tmp_path/f'x.{ending}'
    write_spectra(spectra, path)
    path.write_bytes(path.read_bytes()[:int(share*path.stat().st_size)])
    refused(tmp_path, path, '--basis', d/'b.npz', '--dwell-time', 2.5e-4, '--spectrometer-frequency', 123.2, word='x.')


@pytest.mark.parametrize('tag', ['DIM_COIL', 'DIM_DYN', 'DIM_EDIT'])
def test_dimensions_not_combined_are_named(tag, made, tmp_path):
    from nifti_mrs.create_nmrs import gen_nifti_mrs_hdr_ext
    from nifti_mrs.hdr_ext import Hdr_Ext
    head = Hdr_Ext(123.2, '1H', dimensions=5)
    head.set_dim_info(0, tag)
    gen_nifti_mrs_hdr_ext(np.repeat(made[1].fids.numpy().reshape(1, 1, 1, -1, 1), 4, -1), 2.5e-4, head).save(str(tmp_path/'x.nii.gz'))
    refused(tmp_path, tmp_path/'x.nii.gz', '--basis', made[0]/'b.npz', word=tag)
    if tag == 'DIM_DYN':
        assert call('quantify', tmp_path/'x.nii.gz', '--basis', made[0]/'b.npz', '--out', tmp_path/'o', '--dynamics', 'average')[0] == 0
        assert pd.read_csv(tmp_path/'o/quality.csv').shape[0] == 1


def test_places_that_are_not_there(made, tmp_path):
    d, good = made[0], made[0]/'good.nii.gz'
    (tmp_path/'empty').mkdir()
    refused(tmp_path, tmp_path/'no.nii.gz', '--basis', d/'b.npz', word='does not exist')
    refused(tmp_path, tmp_path/'empty', '--basis', d/'b.npz', word='holds no spectra')
    refused(tmp_path, good, '--basis', tmp_path/'empty', word='basis set')
    refused(tmp_path, good, '--basis', tmp_path/'no.BASIS', word='does not exist')
    refused(tmp_path, good, '--basis', d/'b.npz', '--water', tmp_path/'no.RAW', word='does not exist')
    refused(tmp_path, good, '--basis', d/'b.npz', '--water', tmp_path/'empty', word='folder')
    refused(tmp_path, good, '--basis', d/'b.npz', '--measured', tmp_path/'no.mat', word='does not exist')
    refused(tmp_path, good, word='basis set')
    write_basis(made[2], tmp_path/'b.BASIS')
    refused(tmp_path, tmp_path/'b.BASIS', '--basis', d/'b.npz', word='is a basis set')


def test_unwritable_output(made, tmp_path):
    (tmp_path/'file').write_text('mine')
    for out in (tmp_path/'file', tmp_path/'file'/'below', Path('/dev/null/x')):
        status, text = call('quantify', made[0]/'good.nii.gz', '--basis', made[0]/'b.npz', '--out', out)
        assert status == 1 and 'cannot be written' in text and len(text.splitlines()) == 1
    assert (tmp_path/'file').read_text() == 'mine'
    assert call('quantify', made[0]/'good.nii.gz', '--basis', made[0]/'b.npz')[0] == 2  # no --out


# ---- refused: the basis set, the model, the options

def test_basis_sets_that_no_fit_can_use(made, tmp_path):
    d, _, basis = made
    good, fids = d/'good.nii.gz', basis.fids.numpy()
    def bad(name, fids, names=basis.names, word='', **header): refused(tmp_path, good, '--basis', npz(tmp_path/f'{name}.npz', fids, names=list(names), **header), word=word)
    bad('equal', np.concatenate([fids, fids[:1]]), basis.names + ['Cr2'], 'same signal')
    bad('scaled', np.concatenate([fids, -3*fids[:1]*-1]), basis.names + ['Cr2'], 'same signal')
    bad('named_twice', fids, ['NAA', 'NAA', 'GPC', 'Glu', 'Ins'], 'more than once')
    bad('zero', np.concatenate([fids, 0*fids[:1]]), basis.names + ['Tau'], 'only zeros')
    bad('nan', fids*np.nan, word='NaN')
    bad('short', fids[:, :200], word='rings')
    bad('narrow', fids, word='too narrow', dwell_time=3e-3)
    bad('nucleus', fids, word='31P', nucleus='31P')
    bad('names', fids, basis.names[:3], '3 names')
    bad('field', fids, word='1 %', spectrometer_frequency=297.2)


OPTIONS = [(('--preset', 'x'), 'preset'), (('--baseline', 'x'), 'baseline'), (('--baseline', '0'), 'baseline'), (('--baseline', '-2'), 'baseline'), (('--baseline', 'nan'), 'baseline'),
           (('--baseline', '1e9'), 'baseline'), (('--macromolecules', 'x'), 'macromolecule'), (('--macromolecules', 'measured'), 'measured'), (('--method', 'x'), 'method'),
           (('--method', 'network'), 'trained model'), (('--dwell-time', '-1'), 'Dwell time'), (('--dwell-time', '250'), 'Dwell time'), (('--dwell-time', 'nan'), 'Dwell time'),
           (('--spectrometer-frequency', '123e6'), 'frequency'), (('--echo-time', '30'), 'Echo time'), (('--echo-time', '-0.03'), 'Echo time'), (('--centre-ppm', '4650'), 'Centre'),
           (('--dynamics', 'x'), 'dynamics'), (('--device', 'x'), 'device'), (('--model', 'default'), 'leave the basis set out')]


@pytest.mark.parametrize('option, word', OPTIONS, ids=[' '.join(o) for o, _ in OPTIONS])
def test_options_out_of_range(option, word, made, tmp_path):
    refused(tmp_path, made[0]/'good.nii.gz', '--basis', made[0]/'b.npz', *option, word=word)


def test_options_that_are_no_numbers(made, tmp_path):
    for option in (('--dwell-time', 'fast'), ('--echo-time', '30ms'), ('--nothing',)):
        assert call('quantify', made[0]/'good.nii.gz', '--basis', made[0]/'b.npz', '--out', tmp_path/'o', *option)[0] == 2
    assert call('--threads', 0, 'demo')[0] == 2 and not (tmp_path/'o').exists()


def test_models_that_do_not_fit(made, tmp_path):
    d, spectra, _ = made
    (tmp_path/'empty').mkdir(); (tmp_path/'broken').mkdir()
    (tmp_path/'broken/model.safetensors').write_bytes(b'x'*50); (tmp_path/'broken/model.json').write_text('{}')
    refused(tmp_path, d/'good.nii.gz', '--model', tmp_path/'empty', word='model')
    refused(tmp_path, d/'good.nii.gz', '--model', tmp_path/'no', word='model')
    refused(tmp_path, d/'good.nii.gz', '--model', tmp_path/'broken', word='model')
    refused(tmp_path, d/'good.nii.gz', '--model', d/'b.npz', word='model')
    refused(tmp_path, d/'good.nii.gz', '--model', 'default', '--preset', 'none', word='fixes preset')
    for header, word in ((dict(spectrometer_frequency=127.7), '127.7 MHz'), (dict(echo_time=.144), '144 ms'), (dict(dwell_time=5e-4), '0.0005 s'), (dict(nucleus='31P'), '31P')):
        refused(tmp_path, npz(tmp_path/'other.npz', spectra.fids, **header), '--model', 'default', word=word)
    refused(tmp_path, npz(tmp_path/'short.npz', spectra.fids[:, :300]), '--model', 'default', word='300 points')


# ---- accepted, with a sentence

def accepted(tmp_path, *args):
    "(table by metabolite, what was printed) of a quantify that must succeed"
    status, text = call('quantify', *args, '--out', tmp_path/'out', '--overwrite')
    assert status == 0, text
    assert {f.name for f in (tmp_path/'out').iterdir()} == {'concentrations.csv', 'quality.csv', 'fit.nii.gz', 'result.safetensors', 'run.json', 'report.html'}
    return pd.read_csv(tmp_path/'out/concentrations.csv').set_index('metabolite'), text


@pytest.fixture(scope='module')
def plain(made, tmp_path_factory):
    return accepted(tmp_path_factory.mktemp('plain'), made[0]/'good.nii.gz', '--basis', made[0]/'b.npz')[0]


def same(table, plain, within=.5):
    "Do the totals agree within a share of their error bars?"
    for k in ('tNAA', 'tCr', 'tCho', 'Glx'): assert abs(table.amplitude[k] - plain.amplitude[k]) < within*plain.sd[k], k


TURN = torch.exp(2j*math.pi*.08*123.2*ACQ.time_axis())
ODD = {  # name: (how the FIDs change, header, sentence, agreement with the plain one in error bars)
    'conjugated': (lambda x: x.conj().resolve_conj(), {}, 'turned', .2), 'shifted': (lambda x: x*TURN, {}, 'ppm from the basis', .2),
    'centre 4.7': (lambda x: x, dict(centre_ppm=4.7), 'ppm from the basis', .2), 'dwell time': (lambda x: x[:, ::2], dict(dwell_time=5e-4), 'resampled', 1.5),
    'small': (lambda x: x*1e-9, {}, '', None), 'huge': (lambda x: x*1e9, {}, '', None), 'field': (lambda x: x, dict(spectrometer_frequency=123.3), '', 3.),
    'a million points': (lambda x: torch.nn.functional.pad(x, (0, 10**6 - x.shape[1])), {}, 'zero filling', .1)}


@pytest.mark.parametrize('kind', ODD)
def test_odd_data_are_accepted_with_a_sentence(kind, made, plain, tmp_path):
    d, spectra, _ = made
    change, header, sentence, within = ODD[kind]
    table, text = accepted(tmp_path, npz(tmp_path/'x.npz', change(spectra.fids), **header), '--basis', d/'b.npz')
    assert sentence in text and complaints(text) == []
    scale = {'small': 1e-9, 'huge': 1e9}.get(kind)
    if scale is None: same(table, plain, within)
    else: assert np.allclose(table.ratio_tCr.fillna(0), plain.ratio_tCr.fillna(0), atol=1e-4) and math.isclose(table.amplitude['tNAA'], plain.amplitude['tNAA']*scale, rel_tol=1e-4)
    assert any(sentence in n for n in json.loads((tmp_path/'out/run.json').read_text())['notes'])


def test_odd_basis_sets_are_accepted_with_a_sentence(made, plain, tmp_path):
    d, _, basis = made
    other = singlets(ACQ.replace(dwell_time=2e-4, points=4096))
    for name, fids, header, sentence in (('conj', basis.fids.conj().resolve_conj(), {}, 'turned'), ('moved', basis.fids/TURN, {}, 'published shifts'),
                                         ('dwell', other.fids, dict(dwell_time=2e-4), 'resampled'), ('big', 1e6*basis.fids, {}, '')):
        table, text = accepted(tmp_path, d/'good.nii.gz', '--basis', npz(tmp_path/f'{name}.npz', fids, names=basis.names, **header))
        assert sentence in text
        if name != 'big': same(table, plain)
        else: assert abs(table.ratio_tCr['tNAA'] - plain.ratio_tCr['tNAA']) < 1e-3


def test_a_basis_of_one_metabolite(made, tmp_path):
    d, _, basis = made
    for name in ('NAA', 'Cr'):  # one metabolite does not explain a brain, which the status and the exit status say
        one = npz(tmp_path/'one.npz', basis[name][None], names=[name])
        status, text = call('quantify', d/'good.nii.gz', '--basis', one, '--preset', 'none', '--out', tmp_path/'out', '--overwrite')
        table = pd.read_csv(tmp_path/'out/concentrations.csv').set_index('metabolite')
        assert status == 1 and 'marked misfit' in text and table.status.eq('misfit').all() and table.amplitude[name] > 0
        if name == 'NAA': assert 'no ratios' in text and 'ratio_tCr' not in table
        else: assert math.isclose(table.ratio_tCr['Cr'], 1)


@pytest.mark.parametrize('kind', ['single', 'double', 'int16 parts', 'int16 v7.3', 'transposed'])
def test_mat_files_of_any_precision(kind, made, plain, tmp_path):
    import h5py
    d, spectra, _ = made
    x = spectra.fids.numpy().conj().T  # [N, 1], as stored
    step = float(np.abs(x).max())/30000
    parts = np.stack([np.round(x.real/step), np.round(x.imag/step)], -1).astype(np.int16)
    if kind == 'int16 v7.3':
        with h5py.File(tmp_path/'x.mat', 'w') as f:
            a = np.empty(x.T.shape, dtype=[('real', 'i2'), ('imag', 'i2')])
            a['real'], a['imag'] = parts[..., 0].T, parts[..., 1].T
            f['data'] = a
    else: scipy.io.savemat(tmp_path/'x.mat', {'data': {'single': x.astype(np.complex64), 'double': x.astype(np.complex128), 'int16 parts': parts[:, 0], 'transposed': x.T}[kind]})
    table, text = accepted(tmp_path, tmp_path/'x.mat', '--basis', d/'b.npz', '--dwell-time', 2.5e-4, '--spectrometer-frequency', 123.2)
    if kind.startswith('int'): table[['amplitude', 'sd']] *= step
    if kind == 'transposed': assert 'turned' in text
    same(table, plain, .1)


def test_bare_preset_says_what_it_leaves(made, tmp_path):
    d, spectra, _ = made
    for change, sentence in ((lambda x: x.conj().resolve_conj(), 'look conjugated'), (lambda x: x*TURN, '+0.08')):
        text = call('quantify', npz(tmp_path/'x.npz', change(spectra.fids)), '--basis', d/'b.npz', '--preset', 'none', '--out', tmp_path/'out', '--overwrite')[1]
        assert sentence in text


def test_measured_macromolecules_are_resampled(made, tmp_path):
    d, spectra, _ = made
    acq = ACQ.replace(dwell_time=2e-4, points=2048)
    mm = torch.exp((2j*math.pi*acq.to_hz(.9) - 80)*acq.time_axis()) + torch.exp((2j*math.pi*acq.to_hz(2.05) - 90)*acq.time_axis())
    path = npz(tmp_path/'mm.npz', mm[None], dwell_time=2e-4)
    table, _ = accepted(tmp_path, d/'good.nii.gz', '--basis', d/'b.npz', '--measured', path)
    assert table.kind['MM'] == 'macromolecule' and table.amplitude['MM'] > 0
    refused(tmp_path, d/'good.nii.gz', '--basis', d/'b.npz', '--measured', path, '--macromolecules', 'classical', word='leave one')
    refused(tmp_path, d/'good.nii.gz', '--basis', d/'b.npz', '--measured', d/'b.npz', word='5')


# ---- several inputs

def test_one_bad_file_among_good_ones(made, tmp_path):
    d, spectra, _ = made
    (tmp_path/'bad.nii.gz').write_text('no')
    (tmp_path/'empty').mkdir()
    write_spectra(spectra, tmp_path/'also.npz')
    status, text = call('quantify', d/'good.nii.gz', tmp_path/'bad.nii.gz', tmp_path/'also.npz', tmp_path/'empty', tmp_path/'gone.RAW', '--basis', d/'b.npz', '--out', tmp_path/'out')
    assert status == 1 and len(complaints(text)) == 4 and '3 of 5' in text
    assert sorted(p.name for p in (tmp_path/'out').iterdir()) == ['also', 'good']
    assert all(len(list((tmp_path/'out'/n).iterdir())) == 6 for n in ('also', 'good'))


def test_a_folder_of_spectra(made, tmp_path):
    (tmp_path/'in').mkdir()
    for n in ('a.nii.gz', 'b.npz', 'b.nii'): write_spectra(made[1], tmp_path/'in'/n)
    (tmp_path/'in/.hidden.nii.gz').write_text('x'); (tmp_path/'in/notes.md').write_text('x')
    assert call('quantify', tmp_path/'in', '--basis', made[0]/'b.npz', '--out', tmp_path/'out')[0] == 0
    assert sorted(p.name for p in (tmp_path/'out').iterdir()) == ['a', 'b', 'b_2']


def test_names_of_output_folders():
    names = [f.name for f in folders(['a/x.nii.gz', 'b/x.nii.gz', 'x_2.RAW', 'X.mat'], 'o')]
    assert len({n.lower() for n in names}) == 4 and folders(['x.mat'], 'o') == [Path('o')]
    assert inputs(['nowhere.mat']) == [Path('nowhere.mat')]


def test_status_counts_every_spectrum(made, tmp_path):
    "Single voxels each count; in an image empty voxels are outside the head"
    d, spectra, _ = made
    two = torch.cat([spectra.fids, 0*spectra.fids])
    write_spectra(Spectra(two, acquisition=ACQ), tmp_path/'two.npz')
    status, text = call('quantify', tmp_path/'two.npz', '--basis', d/'b.npz', '--out', tmp_path/'a')
    assert status == 1 and 'empty' in text and pd.read_csv(tmp_path/'a/concentrations.csv').status.tolist().count('empty') > 0
    write_spectra(Spectra(two.reshape(2, 1, 1, -1), acquisition=ACQ, affine=np.eye(4)), tmp_path/'grid.nii.gz')
    status, text = call('quantify', tmp_path/'grid.nii.gz', '--basis', d/'b.npz', '--out', tmp_path/'b')
    assert status == 0 and complaints(text) == [] and (tmp_path/'b/concs/raw/tNAA.nii.gz').exists()


def test_results_of_an_earlier_run_stay_when_the_next_is_refused(made, tmp_path):
    accepted(tmp_path, made[0]/'good.nii.gz', '--basis', made[0]/'b.npz')
    before = {f.name: f.read_bytes() for f in (tmp_path/'out').iterdir()}
    assert call('quantify', made[0]/'good.nii.gz', '--basis', made[0]/'b.npz', '--out', tmp_path/'out', '--overwrite', '--baseline', 'x')[0] == 1
    assert before == {f.name: f.read_bytes() for f in (tmp_path/'out').iterdir()}


# ---- the other commands

PRESS = ('basis', 'simulate', '--te1', .011, '--te2', .019, '--metabolites', 'NAA', '--out', 'DIR/new.npz')
OTHERS = [(('simulate', 'DIR/a.xyz'), 'ending'), (('simulate', 'DIR/a.npz', '--count', 0), 'at least 1'), (('simulate', 'DIR/a.npz', '--basis', 'DIR/no'), 'does not exist'),
          (('simulate', '/dev/null/a.npz', '--count', 1), 'cannot be written'), (('simulate', 'DIR/a.RAW', '--count', 3), 'one spectrum'), (('simulate', 'DIR/a.npz', '--preset', 'x'), 'preset'),
          (('simulate', 'DIR/a.npz', '--noise-sd', '-1'), 'noise sd'), ((*PRESS, '--sequence', 'x'), 'sequence'), ((*PRESS, '--te1', 11), 'seconds'), ((*PRESS, '--metabolites', 'Foo'), 'Foo'),
          ((*PRESS, '--points', 1), 'points'), ((*PRESS, '--dwell-time', '-1'), 'Dwell time'), ((*PRESS, '--linewidth', '-1'), 'linewidth'), ((*PRESS, '--spins', 'DIR/broken.json'), 'spin systems'),
          ((*PRESS, '--out', '/dev/null/b.npz'), 'cannot be written'), ((*PRESS, '--out', 'DIR/b.xyz'), 'ending'), (('basis', 'show', 'DIR/no'), 'does not exist'), (('basis', 'show', 'DIR/broken.json'), 'broken.json'),
          (('basis', 'show', 'DIR'), 'broken.json'), (('basis', 'convert', 'DIR/b.npz', 'DIR/b.xyz'), 'ending'), (('basis', 'convert', 'DIR/no', 'DIR/c.npz'), 'does not exist'),
          (('basis', 'convert', 'DIR/b.npz', 'DIR/c.npz', '--names', 'NAA'), 'names'), (('train', 'DIR/no.json'), 'no.json'), (('train', 'DIR/broken.json'), 'JSON'), (('demo', '--out', '/dev/null/x'), 'cannot be written'),
          (('report', 'DIR'), 'no result'), (('report', 'DIR/broken.json'), 'no result'), (('run',), 'Name a run file'), (('run', 'DIR/no.json'), 'no.json'), (('search', 'DIR/no.json', '--out', 'DIR/s'), 'no.json'),
          (('search', 'DIR/broken.json', '--out', 'DIR/s'), 'JSON'), (('search', 'DIR/small.json', '--out', 'DIR/s', '--space', 'batch_size'), 'key=low..high'),
          (('search', 'DIR/small.json', '--out', 'DIR/s', '--set', 'epochs'), 'key=value'), (('search', 'DIR/small.json', '--out', 'DIR/s', '--resume'), 'to resume'), (('search', 'DIR/small.json', '--out', '/dev/null/s'), 'cannot be written'),
          (('evaluate', '--out', 'DIR/e'), 'known truth'), (('evaluate', 'DIR/no.npz', '--out', 'DIR/e'), 'does not exist'), (('evaluate', 'DIR/b.npz', '--out', 'DIR/e'), 'no truth'),
          (('evaluate', '--truth', 'DIR/t.csv', '--answers', 'x', '--out', 'DIR/e'), 'NAME=FILE'), (('evaluate', '--truth', 'DIR/t.csv', '--answers', 'x=DIR/no.csv', '--out', 'DIR/e'), 'no.csv'),
          (('evaluate', '--truth', 'DIR/t.csv', '--answers', 'x=DIR/broken.json', '--out', 'DIR/e'), 'broken.json')]


@pytest.mark.parametrize('args, word', OTHERS, ids=[' '.join(map(str, a)).replace('DIR/', '')[:60] for a, _ in OTHERS])
def test_other_commands_refuse_bad_input(args, word, made, tmp_path):
    (tmp_path/'broken.json').write_text('{')
    (tmp_path/'small.json').write_text('{"basis": "b.npz", "points": 128}')
    (tmp_path/'t.csv').write_text('NAA,Cr\n1,2\n2,3\n')
    write_basis(made[2], tmp_path/'b.npz')
    before = sorted(tmp_path.rglob('*'))
    status, text = call(*(str(a).replace('DIR', str(tmp_path)) for a in args))
    assert status == 1 and word in text and len(text.strip().splitlines()) == 1, text
    assert sorted(tmp_path.rglob('*')) == before


def test_a_figure_of_another_kind_is_refused(made, tmp_path):
    status, text = call('basis', 'show', made[0]/'b.npz', '--figure', tmp_path/'a.xyz')
    assert status == 1 and '.png' in text and list(tmp_path.iterdir()) == []


# ---- saved results and studies

def test_a_report_from_a_saved_result(made, tmp_path):
    accepted(tmp_path, made[0]/'good.nii.gz', '--basis', made[0]/'b.npz')
    first = (tmp_path/'out/report.html').read_text()
    (tmp_path/'out/report.html').unlink()
    status, text = call('report', tmp_path/'out')
    again = (tmp_path/'out/report.html').read_text()
    assert status == 0 and 'report.html' in text and len(again) == pytest.approx(len(first), rel=.01) and 'good.nii.gz' in again
    (tmp_path/'t.csv').write_text('NAA,Nonsense\n10,1\n')
    assert call('report', tmp_path/'out', '--truth', tmp_path/'t.csv', '--title', 'Mine', '--out', tmp_path/'page')[0] == 0
    assert 'Mine' in (tmp_path/'page/report.html').read_text() and 'Mine' not in (tmp_path/'out/report.html').read_text()
    for content, word in (('NAA\n1\n2\n', '2 rows'), ('Nonsense\n1\n', 'no column'), ('', 'header')):
        (tmp_path/'t.csv').write_text(content)
        status, text = call('report', tmp_path/'out', '--truth', tmp_path/'t.csv')
        assert status == 1 and word in text and len(complaints(text)) == 1
    whole = (tmp_path/'out/result.safetensors').read_bytes()
    for spoilt in (whole[:5000], whole[:-100], b'', b'{}'):
        (tmp_path/'out/result.safetensors').write_bytes(spoilt)
        assert 'damaged' in refused_report(tmp_path/'out')


def refused_report(folder):
    status, text = call('report', folder)
    assert status == 1 and len(text.strip().splitlines()) == 1
    return text


@pytest.mark.parametrize('options', [('--preset', 'none'), ('--baseline', 'off'), ('--macromolecules', 'parametrised'), ('--baseline', '3.5')], ids=' '.join)
def test_results_of_every_model_are_loaded_as_they_were(options, made, tmp_path):
    from deepmrs.quantify import load_result
    table, _ = accepted(tmp_path, made[0]/'good.nii.gz', '--basis', made[0]/'b.npz', *options)
    result = load_result(tmp_path/'out')
    assert np.allclose(result.to_frame().set_index('metabolite').sd, table.sd, rtol=1e-9) and result.spectra.acquisition.echo_time == .03
    v = result.spectrum(0)
    assert torch.allclose(v['data'] - v['fit'], v['residual'], atol=1e-3*float(v['data'].abs().max()))


def test_an_image_is_loaded_with_grid_affine_and_gaps(made, tmp_path):
    from deepmrs.quantify import load_result
    affine = np.array([[8., .1, 0., -20.3], [-.1, 8., 0., 1/3], [0., 0., 12., 1.25], [0., 0., 0., 1.]])
    fids = torch.cat([made[1].fids, 0*made[1].fids]).reshape(2, 1, 1, -1)
    from deepmrs.quantify import quantify
    from deepmrs.io import read_basis
    result = quantify(Spectra(fids, acquisition=ACQ, affine=affine), read_basis(made[0]/'b.npz'))
    result.save(tmp_path/'out')
    back = load_result(tmp_path/'out')
    assert (back.spectra.affine == affine).all() and back.spectra.shape == (2, 1, 1) and back.reasons == result.reasons == ['ok', 'empty']
    pd.testing.assert_frame_equal(back.to_frame(), result.to_frame())


def test_evaluate_from_simulate(made, tmp_path):
    d = made[0]
    assert call('simulate', tmp_path/'s.npz', '--basis', d/'b.npz', '--preset', 'none', '--count', 120, '--noise-sd', .5)[0] == 0
    status, text = call('evaluate', tmp_path/'s.npz', '--basis', d/'b.npz', '--draws', 20, '--out', tmp_path/'e')
    assert status == 0 and '120 spectra of preset none' in text
    table = pd.read_csv(tmp_path/'e/metrics.csv').set_index(['method', 'metabolite'])
    assert set(table.index.get_level_values(0)) == {'fit', 'fit_truncated', 'prior'} and abs(table.rmse_over_crlb['fit', 'NAA'] - 1) < .25
    assert {'r2', 'mae', 'mse', 'mape', 'slope', 'intercept', 'bias', 'rmse_over_crlb', 'coverage_95'} <= set(table.columns)
    assert {f.name for f in (tmp_path/'e').iterdir()} == {'metrics.csv', 'errors_against.csv', 'monte_carlo.csv', 'estimates.csv', 'run.json', 'figures'}
    assert (tmp_path/'e/figures/stacked_fit.png').stat().st_size > 10_000
    truth = pd.read_csv(tmp_path/'s.csv')
    truth[['NAA', 'Cr']].add(.1).to_csv(tmp_path/'tool.csv', index=False)
    status, text = call('evaluate', '--truth', tmp_path/'s.csv', '--answers', f'QUEST={tmp_path/"tool.csv"}', '--out', tmp_path/'alone')
    alone = pd.read_csv(tmp_path/'alone/metrics.csv').set_index('metabolite')
    assert status == 0 and alone.bias['NAA'] == pytest.approx(.1, abs=1e-5) and alone.slope['Cr'] == pytest.approx(1, abs=1e-5) and alone.n['Glu'] == 0


def test_evaluate_with_a_model(tmp_path):
    "Spectra that the shipped model was made for"
    from deepmrs.demo import demo_spectra
    from deepmrs.training import load_model
    model = load_model('default')
    spectra, truth = demo_spectra(model.decoder, 40)
    write_spectra(spectra, tmp_path/'s.npz')
    pd.DataFrame(truth.numpy(), columns=model.layout.labels).to_csv(tmp_path/'s.csv', index_label='spectrum')
    status, text = call('evaluate', tmp_path/'s.npz', '--model', 'default', '--no-figures', '--draws', 0, '--out', tmp_path/'e')
    assert status == 0, text
    table = pd.read_csv(tmp_path/'e/metrics.csv').set_index(['method', 'metabolite'])
    assert set(table.index.get_level_values(0)) == {'network', 'hybrid', 'fit', 'prior'} and table.rmse['hybrid', 'NAA'] < 1.5 and table.n['network', 'NAA'] == 40
    status, text = call('evaluate', tmp_path/'s.npz', '--model', 'default', '--preset', 'none', '--out', tmp_path/'f')
    assert status == 1 and 'fixes preset' in text and not (tmp_path/'f').exists()


def test_search_by_command(made, tmp_path):
    pytest.importorskip('optuna')
    run = tmp_path/'run.json'
    run.write_text(json.dumps({'basis': str(made[0]/'b.npz'), 'points': 128, 'spectra_per_epoch': 128, 'validation': 64, 'batch_size': 64, 'encoder': {'name': 'mlp', 'widths': [32, 16]}}))
    status, text = call('search', run, '--trials', 2, '--epochs', 1, '--space', 'learning_rate=1e-3..3e-3', '--set', 'seed=3', '--out', tmp_path/'s')
    assert status == 0 and 'deepmrs train' in text and json.loads((tmp_path/'s/best.json').read_text())['seed'] == 3
    assert len(pd.read_csv(tmp_path/'s/trials.csv')) == 2
    assert call('search', run, '--trials', 3, '--epochs', 1, '--space', 'learning_rate=1e-3..3e-3', '--set', 'seed=3', '--resume', '--out', tmp_path/'s')[0] == 0
    assert len(pd.read_csv(tmp_path/'s/trials.csv')) == 3


def test_the_schema_is_one():
    status, text = call('run', '--schema')
    assert status == 0 and {'Run', 'Part'} <= set(json.loads(text)['$defs'])


# ---- as a program

def program(*args, **kw):
    return subprocess.run([sys.executable, '-c', 'from deepmrs.cli import main; main()', *map(str, args)], capture_output=True, text=True, timeout=120,
                          env=os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(Path(__file__).parents[1])}, **kw)


def test_the_program_itself(made, tmp_path):
    good = program('quantify', made[0]/'good.nii.gz', '--basis', made[0]/'b.npz', '--out', tmp_path/'o')
    assert good.returncode == 0 and good.stderr == '' and 'tNAA' in good.stdout
    bad = program('quantify', made[0]/'no.nii.gz', '--basis', made[0]/'b.npz', '--out', tmp_path/'p')
    assert bad.returncode == 1 and bad.stdout == '' and bad.stderr.startswith('deepmrs: ') and len(bad.stderr.splitlines()) == 1 and not (tmp_path/'p').exists()
    early = program('quantify', made[0]/'good.nii.gz', '--basis', tmp_path/'no.BASIS', '--out', tmp_path/'p')  # refused before the loop over files
    assert early.returncode == 1 and early.stderr.startswith('deepmrs: ') and 'Traceback' not in early.stderr


def test_help_is_quick_and_complete():
    r = program('quantify', '--help')
    assert r.returncode == 0 and all(o in r.stdout for o in ('--basis', '--model', '--water', '--method', '--preset', '--baseline', '--dwell-time', '--echo-time', '--out'))


# ---- real data

@real
@pytest.mark.parametrize('ending', ['RAW', 'txt', 'mat', 'npy', 'npz', 'sdat'])
def test_real_data_give_the_same_amounts_from_every_format(ending, tmp_path, in_vivo):
    source = INVIVO/'sub-01_press_act.nii.gz'
    spectra = read_spectra(source)
    path, more = tmp_path/f'x.{ending}', []
    if ending == 'sdat':
        from deepmrs.io import _spec2nii
        if _spec2nii() is None: pytest.skip('spec2nii is not installed')
        path = INVIVO/'sub-01_PRESS_35_act.sdat'
    else: write_spectra(spectra, path)
    if ending == 'RAW': more = ['--dwell-time', spectra.acquisition.dwell_time]
    table, _ = accepted(tmp_path, path, '--basis', LCM, *more)
    assert np.allclose(table.amplitude, in_vivo.amplitude, rtol=1e-3, atol=1e-3*in_vivo.sd.min())


@pytest.fixture(scope='module')
def in_vivo(tmp_path_factory):
    if not INVIVO.exists(): pytest.skip('the real files are not here')
    return accepted(tmp_path_factory.mktemp('real'), INVIVO/'sub-01_press_act.nii.gz', '--basis', LCM)[0]


# tNAA/tCr: 1.55 ± 0.30 between studies; below them where NAA is allowed to be narrower than creatine, as its longer T2 makes it
WINDOWS = {'tNAA': (.95, 1.7), 'tCho': (.13, .30), 'Ins': (.5, 1.1), 'Glx': (.9, 2.)}  # ratios to tCr that a healthy adult brain can have


@real
def test_real_ratios_are_those_of_a_brain(in_vivo):
    for k, (low, high) in WINDOWS.items(): assert low < in_vivo.ratio_tCr[k] < high, (k, in_vivo.ratio_tCr[k])
    assert in_vivo.status.eq('ok').all()


@real
@pytest.mark.parametrize('more', [('--water', INVIVO/'sub-01_press_ref.nii.gz'), ('--baseline', 'flexible'), ('--baseline', '4'), ('--macromolecules', 'parametrised'), ('--method', 'fit'),
                                  ('--echo-time', '.035'), ('--centre-ppm', '4.68')], ids=lambda m: ' '.join(map(str, m))[:24])
def test_options_on_real_data(more, tmp_path):
    table, text = accepted(tmp_path, INVIVO/'sub-01_press_act.nii.gz', '--basis', LCM, *more)
    for k in ('tNAA', 'tCho', 'Ins'): assert WINDOWS[k][0] < table.ratio_tCr[k] < WINDOWS[k][1]


@real
def test_the_default_model_refuses_another_scanner(tmp_path):
    assert 'MHz' in refused(tmp_path, INVIVO/'sub-01_press_act.nii.gz', '--model', 'default', word='model')


@pytest.mark.parametrize('choice, word', [('max_damping=-5', 'above 0'), ('max_shift=abc', 'above 0'), ('window=1.8', 'two numbers'), ('groups=Cr', 'groups'), ('lineshape=banana', '"off"'), ('align=maybe', '"on"')])
def test_a_choice_that_a_preset_does_not_take(choice, word, made, tmp_path):
    refused(tmp_path, made[0]/'good.nii.gz', '--basis', made[0]/'b.npz', '--choose', choice, word=word)


def test_choices_do_what_they_say(made, tmp_path):
    table, text = accepted(tmp_path, made[0]/'good.nii.gz', '--basis', made[0]/'b.npz', '--no-posterior', '--choose', 'align=off', '--choose', 'remove_water=off', '--choose', 'window=1.8,4.2')
    assert 'shifted' not in text and 'water was removed' not in text and np.isfinite(table.sd[['tNAA', 'tCr', 'Ins']]).all()


def test_data_are_not_overwritten_by_their_results(made, tmp_path):
    (tmp_path/'out').mkdir()
    data = tmp_path/'out/fit.nii.gz'
    data.write_bytes((made[0]/'good.nii.gz').read_bytes())
    status, text = call('quantify', data, '--basis', made[0]/'b.npz', '--out', tmp_path/'out')
    assert status == 1 and 'would be overwritten' in text and data.read_bytes() == (made[0]/'good.nii.gz').read_bytes()
    refused(tmp_path, made[0]/'good.nii.gz', '--basis', made[0]/'b.npz', '--water', made[0]/'good.nii.gz', word='both as data and as water reference')
    refused(tmp_path, made[0]/'good.nii.gz', '--basis', made[0]/'good.nii.gz', word='is it a spectrum')


def test_noise_is_no_brain(made, tmp_path):
    noise = torch.randn(1, 2048, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    status, text = call('quantify', npz(tmp_path/'noise.npz', noise), '--basis', made[0]/'b.npz', '--no-posterior', '--out', tmp_path/'out')
    assert status == 1 and ('no_signal' in text or 'out_of_reach' in text)
