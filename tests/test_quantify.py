"Results: totals and ratios, empty voxels, maps and their position, saving, models."
import json
import math
import os
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

from deepmrs.basis import Basis
from deepmrs.core import Acquisition, InputError, Spectra
from deepmrs.demo import demo_spectra, healthy_priors
from deepmrs.io import read_spectra, write_basis, write_spectra
from deepmrs.model import make_decoder
from deepmrs.quantify import load_result, covered, quantify, ratio, shorten, total_weights, weighted, writable_folder
from deepmrs.simulate import Simulator
from deepmrs.spins import simulate_basis
from deepmrs.training import load_model

ACQ = Acquisition(2.5e-4, 123.2, 2048, echo_time=.03)
LINES = {'NAA': [(2.008, 3)], 'NAAG': [(2.042, 3)], 'Cr': [(3.027, 3), (3.913, 2)], 'PCr': [(3.029, 3), (3.930, 2)], 'GPC': [(3.212, 9)], 'Glu': [(2.35, 2), (2.1, 1), (3.75, 1)]}
AFFINE = np.array([[9.7, -.3, .1, -60.1], [.2, 10.1, .4, -33.3], [-.1, .3, 15.2, 1/3], [0, 0, 0, 1]])


def singlets(acq=ACQ, damping=4.):
    t = acq.time_axis(dtype=torch.float64)
    return Basis(torch.stack([sum(h*torch.exp((2j*math.pi*acq.to_hz(p) - damping)*t) for p, h in ls) for ls in LINES.values()]), list(LINES), acquisition=acq)


def brains(n, sd=1., seed=0, basis=None, preset='brain-3t'):
    "(basis, spectra, truth)"
    basis = basis or singlets()
    d, _, _ = make_decoder(basis, preset=preset)
    return basis, *Simulator(d, healthy_priors(d), sd).spectra(n, seed)


# ---- totals and ratios

def test_totals_and_ratios_have_honest_errors():
    "Errors of tNAA, tCr and tNAA/tCr over many noise draws, in units of what is reported"
    basis, one, truth = brains(1, 0., preset='none')
    n = 600
    y = one.fids + 4.*torch.randn(n, ACQ.points, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    r = quantify(Spectra(y, acquisition=ACQ), basis, preset='none')
    frame = r.to_frame()
    a = truth[0, :6].double()
    want = {'tNAA': a[0] + a[1], 'tCr': a[2] + a[3]}
    for k, v in want.items():
        rows = frame[frame.metabolite == k]
        z = (rows.amplitude - float(v))/rows.sd
        assert abs(z.std() - 1) < .15 and abs(z.mean()) < .25, (k, z.mean(), z.std())
    rows = frame[frame.metabolite == 'tNAA']
    z = (rows.ratio_tCr - float(want['tNAA']/want['tCr']))/rows.ratio_tCr_sd
    assert abs(z.std() - 1) < .15
    alone = frame[frame.metabolite == 'Cr'].sd.median()
    assert frame[frame.metabolite == 'tCr'].sd.median() < .7*alone  # from the covariance, not from the variances
    assert np.allclose(frame[frame.metabolite == 'tCr'].ratio_tCr, 1) and np.allclose(frame[frame.metabolite == 'tCr'].ratio_tCr_sd, 0)


def test_weights_and_ratios_by_hand():
    w = total_weights(['Cr', 'pcr', 'NAA', 'mI', 'PCh'])
    assert w['tCr'].tolist() == [1, 1, 0, 0, 0] and w['tCho'].tolist() == [0, 0, 0, 0, 1] and 'Glx' not in w
    a, C = torch.tensor([[6., 2.], [0., 1.]], dtype=torch.float64), torch.tensor([[4., -1.], [-1., 1.]], dtype=torch.float64).repeat(2, 1, 1)
    total, sd = weighted(a, C, torch.ones(2, dtype=torch.float64))
    assert total.tolist() == [8, 1] and np.allclose(sd, math.sqrt(3))
    r, s = ratio(a, C, torch.tensor([0., 1.], dtype=torch.float64), torch.tensor([1., 0.], dtype=torch.float64))
    assert math.isclose(r[0], 1/3) and math.isclose(s[0], math.sqrt(1/36*(1 + 2/3 + 4/9)), rel_tol=1e-9) and math.isnan(r[1])


def test_an_infinite_error_stays_where_it_belongs():
    C = torch.diag(torch.tensor([1., math.inf, 4.], dtype=torch.float64))[None]
    a = torch.tensor([[1., 0., 2.]], dtype=torch.float64)
    unit = torch.eye(3, dtype=torch.float64)
    assert [float(weighted(a, C, u)[1]) for u in unit] == [1, math.inf, 2]
    assert math.isfinite(ratio(a, C, unit[0], unit[2])[1][0])


# ---- any number of spectra, empty ones, order

def test_one_spectrum_and_many_are_the_same():
    basis, s, truth = brains(40)
    many, one = quantify(s, basis), quantify(s[7], basis)
    assert ((many.amplitudes[7] - one.amplitudes[0])/one.sd[0]).abs().max() < .03
    assert set(many.reasons) == {'ok'} and one.amplitudes.shape == (1, 6) and len(one.to_frame()) == 6 + 19 + 4


def test_five_hundred_spectra():
    basis, s, truth = brains(500, preset='none')
    r = quantify(s, basis, preset='none')
    assert r.amplitudes.shape == (500, 6) and r.covariance.shape == (500, 6, 6) and torch.isfinite(r.sd).all()
    z = (r.amplitudes[:, [4, 5]] - truth[:, [4, 5]])/r.sd[:, [4, 5]]
    assert (z.std(0) - 1).abs().max() < .15 and r.to_frame().shape[0] == 500*10 and r.quality().shape[0] == 500


def test_empty_voxels_are_nan_with_a_reason(tmp_path):
    basis, s, _ = brains(4)
    fids = s.fids.clone()
    fids[[0, 2]] = 0
    r = quantify(Spectra(fids, acquisition=ACQ), basis)
    assert r.reasons == ['empty', 'ok', 'empty', 'ok'] and r.amplitudes[[0, 2]].isnan().all() and r.sd[[0, 2]].isnan().all() and any('2 of 4' in n for n in r.notes)
    full = quantify(Spectra(fids[[1, 3]], acquisition=ACQ), basis)
    assert ((r.amplitudes[[1, 3]] - full.amplitudes)/full.sd).abs().max() < .03
    with pytest.raises(InputError, match='zeros'): r.plot(0)
    r.save(tmp_path)
    back = read_spectra(tmp_path/'fit.nii.gz')
    assert (back.fids[0] == 0).all() and (back.fids[1] != 0).any()
    assert pd.read_csv(tmp_path/'concentrations.csv').query('status == "empty"').amplitude.isna().all()


def test_parts_of_a_result_add_up():
    basis, s, _ = brains(2)
    r = quantify(s, basis)
    v = r.spectrum(1)
    assert torch.allclose(sum(v['terms'].values()) + v['baseline'], v['fit'], atol=1e-4*float(v['fit'].abs().max()))
    assert torch.allclose(v['data'] - v['fit'], v['residual'], atol=1e-4*float(v['data'].abs().max()))
    assert list(v['terms']) == r.all_names and r.names == list(LINES) and r.parameter('shift').shape == (2, 1)


def test_noise_free_data():
    basis, s, truth = brains(3, 0., preset='none')
    r = quantify(s, basis, preset='none')
    assert r.reasons == ['ok']*3 and torch.allclose(r.amplitudes, truth[:, :6].double(), atol=1e-3) and (r.sd < .01).all() and torch.isfinite(r.sd).all()


def test_no_macromolecules_in_the_data_do_not_blow_up_the_errors():
    basis, s, truth = brains(4, 1., preset='none')
    r = quantify(s, basis)
    assert torch.isfinite(r.sd).all() and (r.sd[:, 4] < .3).all()


# ---- images

@pytest.mark.parametrize('affine', [AFFINE, AFFINE.astype(np.float32).astype(np.float64), np.eye(4)], ids=['double', 'single', 'unit'])
def test_maps_keep_grid_and_affine_bit_for_bit(tmp_path, affine):
    basis, s, _ = brains(12, preset='none')
    fids = s.fids.clone()
    fids[5] = 0
    grid = Spectra(fids.reshape(3, 2, 2, -1), acquisition=ACQ, affine=affine)
    r = quantify(grid, basis, preset='none')
    files = r.save(tmp_path)
    maps = [f for f in files if f.parent != tmp_path]
    assert {f.parent.relative_to(tmp_path).as_posix() for f in maps} == {'concs/raw', 'concs/internal', 'uncertainties', 'qc', 'nuisance'}
    for f in maps + [tmp_path/'fit.nii.gz']:
        img = nib.load(f)
        assert img.shape[:3] == (3, 2, 2) and img.affine.dtype == np.float64 and (img.affine == affine).all(), f
    naa = nib.load(tmp_path/'concs/raw/NAA.nii.gz').get_fdata()
    assert np.allclose(naa.ravel(), r.amplitudes[:, 0].numpy(), rtol=1e-6, equal_nan=True) and np.isnan(naa.ravel()).sum() == 1 and np.isnan(naa[1, 0, 1])
    sd = nib.load(tmp_path/'uncertainties/tCr_sd.nii.gz').get_fdata()
    frame = r.to_frame()
    tcr = frame[frame.metabolite == 'tCr']
    assert np.allclose(sd.ravel(), 100*tcr.sd/tcr.amplitude, rtol=1e-5, equal_nan=True)
    ok = nib.load(tmp_path/'qc/ok.nii.gz').get_fdata()
    assert (ok.ravel() == [r == 'ok' for r in r.reasons]).all()
    assert np.allclose(nib.load(tmp_path/'concs/internal/tNAA.nii.gz').get_fdata().ravel(), frame[frame.metabolite == 'tNAA'].ratio_tCr, rtol=1e-5, equal_nan=True)


def test_an_image_file_goes_all_the_way(tmp_path):
    basis, s, _ = brains(6, preset='none')
    write_spectra(Spectra(s.fids.reshape(2, 3, 1, -1), acquisition=ACQ, affine=AFFINE), tmp_path/'mrsi.nii.gz')
    image = read_spectra(tmp_path/'mrsi.nii.gz')
    r = quantify(image, basis, preset='none')
    r.save(tmp_path/'out')
    m = nib.load(tmp_path/'out/concs/raw/tCr.nii.gz')
    assert (m.affine == image.affine).all() and (m.affine == AFFINE).all() and m.shape == (2, 3, 1)


# ---- saving

def test_saved_files_say_what_was_done(tmp_path):
    basis, s, _ = brains(2)
    r = quantify(s, basis, baseline='stiff')
    r.save(tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ['concentrations.csv', 'fit.nii.gz', 'quality.csv', 'result.safetensors', 'run.json']
    run = json.loads((tmp_path/'run.json').read_text())
    assert run['preset']['baseline'] == 'stiff' and run['method'] == 'fit' and run['notes'] == r.notes and run['basis_names'] == basis.names and run['deepmrs'] and run['torch']
    back = pd.read_csv(tmp_path/'concentrations.csv')
    assert np.allclose(back.amplitude, r.to_frame().amplitude) and list(back.columns) == ['spectrum', 'metabolite', 'kind', 'amplitude', 'sd', 'crlb_percent', 'ratio_tCr', 'ratio_tCr_sd', 'posterior_mean', 'low95', 'high95', 'data_share',
                                                                                                       'mostly_prior', 'status']
    fit = read_spectra(tmp_path/'fit.nii.gz')
    want = r.decoder(r.fit.params.float())
    assert torch.allclose(fit.fids, want, atol=1e-5*float(want.abs().max())) and fit.acquisition.dwell_time == ACQ.dwell_time


def test_folders_are_asked_before_the_work(tmp_path):
    writable_folder(tmp_path/'a/b', leave=False)
    assert not (tmp_path/'a').exists()
    (tmp_path/'mine').mkdir(); (tmp_path/'mine/x').write_text('x')
    writable_folder(tmp_path/'mine', leave=False)
    assert [f.name for f in (tmp_path/'mine').iterdir()] == ['x']
    for bad in (tmp_path/'mine/x', tmp_path/'mine/x/y', '/dev/null/x'):
        with pytest.raises(InputError, match='cannot be written'): writable_folder(bad)


def test_a_full_disk_leaves_no_half_file(tmp_path, monkeypatch):
    basis, s, _ = brains(1)
    r = quantify(s, basis)
    def full(self, *args, **kw): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(Path, 'write_text', full)
    with pytest.raises(InputError, match='No space'): r.save(tmp_path/'out')
    assert list(tmp_path.iterdir()) == []


KILLED = '''
import sys, time
from pathlib import Path
import deepmrs.io as dio
here = Path(sys.argv[1], 'now')
def slow(self, text, **kw):
    with open(self, 'w') as f: f.write(text[:len(text)//2]); f.flush(); here.touch(); time.sleep(60)
Path.write_text = slow
from deepmrs.cli import main
sys.argv = ['deepmrs', 'quantify', sys.argv[2], '--basis', sys.argv[3], '--out', sys.argv[4]]
main()
'''


@pytest.mark.parametrize('how', [signal.SIGTERM, signal.SIGKILL, signal.SIGINT], ids=lambda s: s.name)
def test_killed_in_the_middle_of_a_file(how, tmp_path):
    basis, s, _ = brains(1)
    write_spectra(s, tmp_path/'s.npz'); write_basis(basis, tmp_path/'b.npz')
    (tmp_path/'kill.py').write_text(KILLED)
    p = subprocess.Popen([sys.executable, tmp_path/'kill.py', tmp_path, tmp_path/'s.npz', tmp_path/'b.npz', tmp_path/'out'], stderr=subprocess.DEVNULL,
                         env=os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(Path(__file__).parents[1])})
    end = time.time() + 40
    while not (tmp_path/'now').exists() and p.poll() is None and time.time() < end: time.sleep(.05)
    assert (tmp_path/'now').exists(), 'it did not get to writing'
    p.send_signal(how)
    assert p.wait(20) != 0
    assert not (tmp_path/'out').exists()  # nothing under its own name
    if how != signal.SIGKILL: assert sorted(f.name for f in tmp_path.iterdir()) == ['b.npz', 'kill.py', 'now', 's.npz']


# ---- the data that come in

def test_long_data_are_cut_and_short_basis_sets_too():
    basis, s, truth = brains(1)
    long = s.replace(torch.nn.functional.pad(s.fids, (0, 10**6 - 2048)))
    r = quantify(long, basis)
    assert any('zero filling' in n for n in r.notes) and ((r.amplitudes - quantify(s, basis).amplitudes).abs() < 1e-3).all()
    assert math.isclose(covered(basis), 2048*2.5e-4) and covered(singlets(damping=20.)) == math.inf
    with pytest.raises(InputError, match='65536'): shorten(Spectra(torch.ones(1, 2**20), 2e-7, 123.2))
    rings = singlets(ACQ.replace(points=1200))
    r = quantify(s, rings)
    assert any('0.3 s (1200 points)' in n for n in r.notes)
    with pytest.raises(InputError, match='rings'): quantify(s, singlets(ACQ.replace(points=300)))


def test_water_reference_of_a_file_or_in_memory(tmp_path):
    basis, s, _ = brains(1)
    t = ACQ.time_axis()
    turn = torch.exp(1j*(.8*torch.exp(-t/.02) + .5))
    w = Spectra((2000*torch.exp(-12*t)*turn)[None], acquisition=ACQ)
    write_spectra(w, tmp_path/'w.nii.gz')
    bent, plain = s.replace(s.fids*turn), quantify(s, basis)
    for water in (w, tmp_path/'w.nii.gz'):
        r = quantify(bent, basis, water=water)
        assert any('Eddy' in n for n in r.notes) and ((r.amplitudes - plain.amplitudes)/plain.sd).abs().max() < 1
    with pytest.raises(InputError, match='water'): quantify(s, basis, water=Spectra(torch.ones(3, 64), acquisition=ACQ.replace(points=64)))


def test_options_are_checked():
    basis, s, _ = brains(1)
    for kw, word in (({}, 'basis set'), (dict(basis=basis, method='guess'), 'guess'), (dict(basis=basis, method='hybrid'), 'trained model'), (dict(basis=basis, preset='x'), 'preset'),
                     (dict(basis=basis, model='default'), 'leave the basis set out'), (dict(basis=basis, measured=torch.ones(5)), '5 points'), (dict(basis=basis, device='tpu9'), 'device'),
                     (dict(basis=basis, measured=torch.ones(2048), macromolecules='summed'), 'leave one'), (dict(basis=basis, macromolecules='measured'), 'needs a measured')):
        with pytest.raises(InputError, match=word): quantify(s, **kw)


# ---- the model that comes with deepmrs

@pytest.fixture(scope='module')
def default():
    model = load_model('default')
    return model, *demo_spectra(model.decoder)


@pytest.mark.parametrize('method', ['fit', 'network', 'hybrid'])
def test_default_model_on_the_demo(default, method):
    model, s, truth = default
    r = quantify(s, model='default', method=method)
    frame = r.to_frame()
    W = r.amounts()[4]
    frame['truth'] = (truth[:, :W.shape[1]].double() @ W.T).flatten().numpy()
    big = frame[frame.metabolite.isin(['tNAA', 'tCr', 'tCho'])]
    off = (big.amplitude/big.truth - 1).abs()
    assert off.median() < (.15 if method == 'network' else .08) and off.max() < .4, off.describe()
    assert r.method == method and set(r.reasons) == {'ok'} and (method != 'network' or any('that the network states itself' in n for n in r.notes))


def test_hybrid_is_the_fit(default):
    "Both end in the same minimum"
    model, s, _ = default
    a, b = quantify(s, model=model), quantify(s, model=model, method='fit')
    assert ((a.amplitudes - b.amplitudes)/b.sd).abs().max() < .2 and np.allclose(a.sd, b.sd, rtol=.1)


@pytest.mark.parametrize('change, word', [(dict(spectrometer_frequency=297.2), 'MHz'), (dict(echo_time=.144), '144 ms'), (dict(dwell_time=5e-4), 'resample'), (dict(nucleus='31P', centre_ppm=0.), '31P'),
                                          (dict(centre_ppm=4.8), '4.8 ppm')])
def test_default_model_refuses_other_data(default, change, word):
    model, s, _ = default
    other = Spectra(s.fids, acquisition=s.acquisition.replace(**change))
    for method in ('network', 'hybrid'):
        with pytest.raises(InputError, match=word) as e: quantify(other, model='default', method=method)
        assert len(str(e.value).splitlines()) == 1 and str(e.value).endswith('.')


def test_the_model_without_its_network(default):
    "method='fit' takes the model's basis set to data of another dwell time, and other choices of baseline"
    model, s, _ = default
    plain = quantify(s[:2], model=model, method='fit')
    half = Spectra(s.fids[:2, ::2], acquisition=s.acquisition.replace(dwell_time=5e-4))
    r = quantify(half, model=model, method='fit')
    t = lambda r: r.to_frame().query('metabolite in ("tNAA", "tCr", "tCho")').amplitude.to_numpy()
    assert np.allclose(t(r), t(plain), rtol=.1) and any('resampled' in n for n in r.notes)
    assert quantify(s[:1], model=model, method='fit', baseline='stiff').settings['preset']['baseline'] == 'stiff'
    with pytest.raises(InputError, match='leave them out'): quantify(s[:1], model=model, baseline='stiff')


# ---- the posterior beside the estimate

def test_the_posterior_stands_beside_the_estimate(tmp_path):
    basis, s, truth = brains(12, 3.)
    s = s.replace(torch.cat([s.fids[:11], 0*s.fids[:1]]))
    r = quantify(s, basis)
    frame = r.to_frame()
    ok = frame[frame.spectrum != frame.spectrum.iloc[-1]]
    assert ((ok.low95 <= ok.posterior_mean) & (ok.posterior_mean <= ok.high95) & (ok.low95 >= 0)).all()
    assert ok.data_share[ok.kind != 'total'].between(-.2, 1.0001).all() and ok.data_share[ok.kind == 'total'].isna().all()
    assert frame[~frame.index.isin(ok.index)].posterior_mean.isna().all() and not frame[~frame.index.isin(ok.index)].mostly_prior.any()
    naa = ok[ok.metabolite == 'NAA']
    assert (abs(naa.posterior_mean - naa.amplitude) < naa.sd).all() and (naa.data_share > .9).all()
    t = truth[:11, :6].double()
    inside = ((r.posterior.low[:11, :6] <= t) & (t <= r.posterior.high[:11, :6])).double().mean()
    assert inside > .8
    r.save(tmp_path)
    pd.testing.assert_frame_equal(load_result(tmp_path).to_frame(), frame)
    assert quantify(s, basis, posterior=False).posterior is None and 'low95' not in quantify(s, basis, posterior=False).to_frame()


def test_the_posterior_knows_what_the_prior_said():
    "At next to no signal, a weak metabolite is what the prior makes it"
    from deepmrs.spins import simulate_basis
    basis = simulate_basis(te1=.011, te2=.019, spectrometer_frequency=123.2, dwell_time=5e-4, points=1024)
    d, _, _ = make_decoder(basis)
    first = float(d.fids[basis.index('NAA'), 0].abs())
    _, s, _ = brains(6, 2.*first, basis=basis)
    frame = quantify(s, basis).to_frame()
    weak, strong = frame[frame.metabolite.isin(['Glc', 'PE', 'Asp', 'Asc'])], frame[frame.metabolite == 'NAA']
    assert weak.mostly_prior.mean() > .5 and not strong.mostly_prior.any()


def test_the_field_of_the_data_chooses_the_preset():
    for frequency, name in ((123.2, 'brain-3t'), (297.2, 'brain-7t')):
        basis = simulate_basis(['NAA', 'Cr', 'GPC', 'Glu', 'Ins'], te1=.011, te2=.019, spectrometer_frequency=frequency)
        decoder, used, _ = make_decoder(basis)
        spectra, _ = Simulator(decoder, healthy_priors(decoder), .5).spectra(1, 0)
        result = quantify(spectra, basis, posterior=False)
        assert used.name == name == result.preset.name
        assert any(f'Preset {name}, version' in n for n in result.notes)
        assert quantify(spectra, basis, preset='phantom', posterior=False).preset.name == 'phantom'


# ---- what a saved result says

def saved(folder, dimensions=('DIM_DYN',)):
    "A result of 1 × 1 × 1 × 3 spectra in `folder`; returns it"
    basis, s, _ = brains(3, preset='none')
    grid = s.replace(s.fids, shape=(1, 1, 1, 3), dimensions=dimensions, affine=AFFINE)
    result = quantify(grid, basis, preset='none')
    result.save(folder)
    return result


def test_dimensions_of_the_grid_are_kept(tmp_path):
    saved(tmp_path)
    back = load_result(tmp_path).spectra
    assert back.dimensions == ('DIM_DYN',) and back.shape == (1, 1, 1, 3) and (back.affine == AFFINE).all()


def test_a_saved_result_that_says_something_else_is_refused(tmp_path):
    "Every field of its card and every tensor: of another kind, length, shape or type; nothing loads that a table can't be made of"
    from safetensors import safe_open
    from safetensors.torch import load, save
    saved(tmp_path)
    file = tmp_path/'result.safetensors'
    tensors = load(file.read_bytes())
    with safe_open(file, 'pt') as f: card = json.loads(f.metadata()['card'])

    def refused(word, tensors=tensors, **changes):
        file.write_bytes(save(tensors, {'card': json.dumps(card | changes)}))
        with pytest.raises(InputError, match=word): load_result(tmp_path)

    for window in ('ppm', [1.], [4., 1.], [0, float('nan')], ['0.2', '4.2'], 3): refused('its window', window=window)
    for key in ('names', 'reasons'):
        for value in ('abc', ['a', 'b'], [1, 2, 3], None): refused(f'its {key}', **{key: value})
    for key, value in {'notes': 'text', 'dimensions': [4], 'shape': [3.], 'settings': [], 'method': 1, 'header': 'x', 'path': 5, 'affine': [[1, 0, 0, 0]], 'source': None}.items():
        refused(f'its {key}', **{key: value})
    for shape in ([-1, -3], [], 'abc', [True, 3], [0]): refused('its shape', shape=shape)
    refused('does not hold 3', shape=[2])
    refused('does not hold what it should', acquisition=[1])
    refused('does not hold what it should', decoder=[])
    for key, value in tensors.items():
        refused('does not hold what it should' if key in ('fids', 'decoder') else f'{key} is of shape', tensors | {key: value[..., None].clone()})
        if key in ('fids', 'decoder'): continue
        refused(f'{key} is of shape', tensors | {key: value[:2].clone()})
        refused(f'{key} holds numbers of another kind', tensors | {key: value.to(torch.complex64)})
    file.write_bytes(save(tensors, {'card': '['*100_000}))
    with pytest.raises(InputError, match='damaged'): load_result(tmp_path)
    without = {k: v for k, v in card.items() if k != 'dimensions'}
    file.write_bytes(save(tensors, {'card': json.dumps(without)}))  # as earlier versions wrote it
    assert load_result(tmp_path).spectra.dimensions == ()
