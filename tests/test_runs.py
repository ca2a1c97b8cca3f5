"Runs: from a run file, the paper's or a native one, to a folder of results; what another tool answers stands in the same tables."
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.io
import torch

from deepmrs.config import from_paper, native_runs, read_runs, run_file_schema
from deepmrs.core import InputError, Spectra
from deepmrs.evaluation import study
from deepmrs.runs import augmented, compare, convert_file, ingredients, make_test_set, read_answers, run_command, run_file, run_spectra, truncated_fit
from deepmrs.training import shortened

SEED = Path(__file__).parents[2]/'shared/data/seed'
needs_seed = pytest.mark.skipif(not (SEED/'exp4.json').exists(), reason="the paper's files are not at ../shared/data/seed")
SIMULATED = {'simulate': {'names': ['NAA', 'Cr', 'GPC'], 'te1': .011, 'te2': .019, 'points': 512, 'dwell_time': 5e-4, 'linewidth': 2.}}
TINY = {'basis': SIMULATED, 'priors': 'paper', 'noise_sd': .6, 'points': 256, 'batch_size': 32, 'spectra_per_epoch': 320, 'validation': 64, 'max_epochs': 1, 'progress': False, 'macromolecules': 'summed',
        'encoder': {'name': 'convnet', 'channels': [8, 8, 8, 8]}, 'test': {'spectra': 60, 'monte_carlo': 16, 'leave_out': 10, 'export_spectra': 3}}
FAST = {'test.spectra': 40, 'test.monte_carlo': 8, 'test.export_spectra': 2, 'progress': False}


def put(path, **keys):
    path.write_text(json.dumps(TINY | keys))
    return path


@needs_seed
def test_the_papers_run_file_end_to_end(tmp_path):
    said = []
    changes = ['max_epoch=1', 'numOfSample=640'] + [f'{k}={json.dumps(v)}' for k, v in FAST.items()]
    folders = run_command(SEED/'exp4.json', ['1', '2/'], changes, tmp_path, say=said.append)
    assert list(folders) == ['1', '2'] and any('never released' in s for s in said) and any('Without effect: fbound' in s for s in said)
    for name, mm in (('1', True), ('2', False)):
        table = pd.read_csv(folders[name]/'metrics.csv')
        assert set(table.method) == {'network', 'hybrid', 'fit', 'fit_truncated', 'prior'} and ('MM' in set(table.metabolite)) == mm and 'Cr+PCr' in set(table.metabolite)
        about = json.loads((folders[name]/'run.json').read_text())
        assert about['config']['max_epochs'] == 1 and {'preparing', 'training', 'testing'} <= set(about['seconds']) and about['versions']['torch']
        here = {str(f.relative_to(folders[name])) for f in folders[name].rglob('*')}
        assert {'model.safetensors', 'checkpoints/best.ckpt', 'test/test.txt', 'test/test.mat', 'figures/stacked_network.png', 'figures/true_estimated_fit.png', 'errors_against.csv', 'monte_carlo.csv'} <= here
    fit = pd.read_csv(folders['1']/'metrics.csv').query('method == "fit" and metabolite == "NAA"')
    assert .7 < fit.rmse_over_crlb.iloc[0] < 1.7


@needs_seed
def test_every_key_of_the_papers_file_is_understood():
    runs = read_runs(SEED/'exp4.json')
    kinds = [c.macromolecules if isinstance(c.macromolecules, str) else c.macromolecules['kind'] for c, _ in runs.values()]
    assert list(runs) == ['1', '2', '3', '4'] and kinds == ['measured', 'summed', 'parametrised', 'regularised'] and runs['4'][0].reg_weight == 3
    cfg = runs['1'][0]
    assert cfg.encoder == {'name': 'convnet', 'channels': [16, 24, 32, 40, 48, 56, 64, 72], 'kernels': [5, 3], 'batch_norm': False} and cfg.patience == 50 and cfg.noise == 'fading'
    parts = ingredients(cfg)
    assert parts.decoder.linear == 20 and parts.simulator.decoder.acquisition.points == 2048 and cfg.points == 1024
    low, high = parts.priors['amplitudes'].low, parts.priors['amplitudes'].high
    assert abs(float(high[12]) - 1) < 1e-6 and abs(float(low[0]) - .1/17) < 1e-6 and abs(float(parts.priors['phase'].high) - np.radians(9)) < 1e-6
    lines = ingredients(runs['3'][0])
    assert lines.decoder.linear == 37 and lines.simulator.decoder.linear == 20 and .5 < float(lines.priors['macromolecules'].mean[0]) < 2


@needs_seed
def test_slips_in_the_papers_file_are_refused_by_name():
    run = json.loads((SEED/'exp4.json').read_text())['runs'][0]
    for slip, words in (({'batch_siz': 3}, 'no key "batch_siz"'), ({'enc_type': 'resnet'}, '"enc_type"'), ({'in_shape': 'real'}, '"in_shape"'), ({'MM_type': 'two'}, '"MM_type"'), ({'MM_constr': True}, '"MM_constr"'),
                        ({'sim_params': [1]}, '"sim_params"'), ({'MM_f': [1.]*18, 'MM_type': 'param'}, '"MM_f"'), ({'reduce_lr': [.3]}, '"reduce_lr"'), ({'ens': 2, 'depths': [6, 4]}, '"depths"'), ({'wr': 5}, '"wr"')):
        try: from_paper(run | slip, 'x')
        except InputError as e: assert words in str(e), (slip, e)
        else: assert slip == {'wr': 5}, slip  # without measured data nothing reads it
    with pytest.raises(InputError, match='"wr"'): from_paper(run | {'data_dir': 'a.mat', 'wr': 5}, 'x')
    native, _ = from_paper(run | {'data_dir': 'a.mat', 'data_name': 'y', 'data_conj': True, 'wr': [True, 50], 'aug_params': [3, 10, .2, .4, 8, .1], 'sim_params': None, 'test_nos': 4, 'banorm': True, 'kw': 7, 'lr': 1e-4}, 'x')
    assert native['augment'] == {'copies': 3, 'shift': 5., 'phase': pytest.approx(.1*np.pi), 'amplitude': .2, 'damping': 8., 'noise': .1} and native['remove_water'] and native['conjugate_data'] is False
    assert native['encoder']['kernels'] == [7, 5] and native['encoder']['batch_norm'] and native['held_out'] == 4 and native['learning_rate'] == 1e-4 and native['data_key'] == 'y'


@needs_seed
def test_conversion_means_the_same(tmp_path):
    for f in SEED.glob('*'):
        if f.is_file(): (tmp_path/f.name).write_bytes(f.read_bytes())
    convert_file(tmp_path/'exp4.json', tmp_path/'native.json')
    a, b = ({n: c.model_dump() for n, (c, _) in read_runs(tmp_path/f).items()} for f in ('exp4.json', 'native.json'))
    assert a == b and 'basis' in json.loads((tmp_path/'native.json').read_text())['common']


def test_native_run_trains_tests_and_tests_again(tmp_path):
    file = put(tmp_path/'mine.json', out=str(tmp_path/'out'))
    out = run_file(file, say=lambda s: None)['mine']
    first = pd.read_csv(out/'metrics.csv').drop(columns=['seconds', 'spectra_per_second'])
    assert {'MM', 'NAA'} <= set(first.metabolite) and len(pd.read_csv(out/'test/truth.csv')) == 3
    run_file(file, changes={'mode': 'test'}, say=lambda s: None)
    pd.testing.assert_frame_equal(pd.read_csv(out/'metrics.csv').drop(columns=['seconds', 'spectra_per_second']), first)
    with pytest.raises(InputError, match='no model file'): run_file(file, changes={'mode': 'test'}, out=tmp_path/'else', say=lambda s: None)


def test_measured_data(tmp_path):
    parts = ingredients(read_runs(put(tmp_path/'a.json'))['a'][0])
    spectra, truth = parts.simulator.spectra(40)
    from deepmrs.io import write_spectra
    write_spectra(spectra, tmp_path/'found.npz')
    file = put(tmp_path/'b.json', data=['found.npz'], held_out=6, augment={'copies': 2}, out=str(tmp_path/'out'))
    out = run_file(file, changes={'spectra_per_epoch': 96}, say=lambda s: None)['b']
    table = pd.read_csv(out/'concentrations.csv')
    hybrid = table.query('method == "hybrid" and metabolite == "NAA"').amplitude
    assert len(hybrid) == 6 and abs(np.corrcoef(hybrid, truth[-6:, 0])[0, 1]) > .8 and '102 measured' in (out/'model.json').read_text()
    cfg = read_runs(file, changes={'quality': {'min_snr': 1.}, 'augment': None, 'remove_water': True})['b'][0]
    seen, held = run_spectra(cfg, {})
    assert len(held) == 6 and 10 < len(seen) <= 34 and any('good enough' in n for n in seen.notes)
    with pytest.raises(InputError, match='good enough'): run_spectra(read_runs(file, changes={'quality': {'min_snr': 1e6}})['b'][0], {})
    with pytest.raises(InputError, match='held_out'): run_file(file, changes={'held_out': 40}, say=lambda s: None)


def test_augmentation_changes_what_it_says():
    s = Spectra(torch.exp(-30*torch.arange(256)*5e-4)[None].repeat(3, 1).to(torch.complex64), dwell_time=5e-4, spectrometer_frequency=123.2)
    same = augmented(s, 2, 0., 0., 0., 0., 0.)
    assert len(same) == 9 and torch.allclose(same.fids, s.fids.repeat(3, 1))
    turned = augmented(s, 200, 0., .3, .2, 0., 0.).fids[3:, 0]
    assert turned.angle().abs().max() <= .3 and turned.angle().abs().max() > .25 and .8 <= turned.abs().min() < .83 < 1.17 < turned.abs().max() <= 1.2


def test_answers_of_other_tools(tmp_path):
    names, amounts = ['NAA', 'Cr', 'MM'], np.random.default_rng(0).uniform(1, 2, (7, 3))
    scipy.io.savemat(tmp_path/'a.mat', {'ampl': amounts})
    assert np.allclose(read_answers(tmp_path/'a.mat', names, 7), amounts)
    scipy.io.savemat(tmp_path/'b.mat', {'ampl': amounts[:, ::-1].T, 'other': amounts, 'names': np.array(names[::-1], dtype=object)})
    assert np.allclose(read_answers(tmp_path/'b.mat', names, 7, 'ampl', 2.), 2*amounts)
    with pytest.raises(InputError, match='key'): read_answers(tmp_path/'b.mat', names, 7)
    tidy = pd.DataFrame({'spectrum': np.repeat(np.arange(7), 3), 'metabolite': names*7, 'amplitude': amounts.flatten()})
    tidy.to_csv(tmp_path/'concentrations.csv', index=False)
    assert np.allclose(read_answers(tmp_path/'concentrations.csv', names, 7), amounts)
    pd.DataFrame(amounts[:, :2], columns=['NAA', 'Cr']).to_csv(tmp_path/'q.txt', sep='\t', index=False)
    got = read_answers(tmp_path/'q.txt', names, 7)
    assert np.allclose(got[:, :2].numpy(), amounts[:, :2]) and got[:, 2].isnan().all()


def test_compare_agrees_with_the_study_of_chapter_61(tmp_path):
    parts = ingredients(read_runs(put(tmp_path/'a.json', points=512))['a'][0])
    tests = make_test_set(parts.simulator, 200, seed=3, points=512)
    table, _ = compare(tests, parts.decoder, methods=('fit',))
    other = study(parts.decoder, parts.priors, (.6,), ('fit',), 200, seed=3)
    both = table.set_index('metabolite').join(other.set_index('metabolite').add_suffix('_61'))
    for c in ('rmse', 'bias', 'slope', 'rmse_over_crlb', 'rmse_over_prior_sd', 'coverage_95'): assert np.allclose(both[c], both[f'{c}_61'], rtol=1e-5), c


def test_fading_noise_has_its_own_bound(tmp_path):
    parts = ingredients(read_runs(put(tmp_path/'a.json', noise='fading'))['a'][0])
    tests = make_test_set(parts.simulator, 400, points=256)
    ratio = compare(tests, parts.decoder, methods=('fit',))[0].set_index('metabolite').rmse_over_crlb
    assert (ratio > .95).all() and (ratio < 1.6).all()  # least squares is not efficient here, and not far off


def test_the_truncated_fit_is_turned_back(tmp_path):
    parts = ingredients(read_runs(put(tmp_path/'a.json'))['a'][0])
    cut, x = shortened(parts.decoder, 256), parts.simulator.sample(20, torch.Generator().manual_seed(0))
    f = truncated_fit(cut, cut(x), 25)
    assert torch.allclose(f.params.float(), x, atol=1e-3) and (f.sd > 0).all()
    for bad in (0, 250):
        with pytest.raises(InputError, match='leave_out'): truncated_fit(cut, cut(x), bad)


def test_several_runs_and_their_slips(tmp_path):
    file = tmp_path/'many.json'
    file.write_text(json.dumps({'common': TINY, 'runs': {'a': {}, 'b': {'seed': 3}}}))
    assert [c.seed for c, _ in read_runs(file).values()] == [0, 3]
    for text, word in (({'runs': {}}, 'no runs'), ({'runs': {'a': {}}, 'comon': {}}, 'no "comon"'), ({'runs': 3}, 'several runs'), ({'runs': {'a': TINY | {'x': 1}}}, 'no key "x"'), ({'runs': [3]}, 'object')):
        file.write_text(json.dumps(text))
        with pytest.raises(InputError, match=word): read_runs(file)


def test_schema_accepts_what_is_accepted():
    jsonschema = pytest.importorskip('jsonschema')
    schema = run_file_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    ok = jsonschema.Draft202012Validator(schema)
    assert ok.is_valid(TINY) and ok.is_valid({'common': TINY, 'runs': {'a': {'seed': 3}}}) and not ok.is_valid(TINY | {'batchsize': 3}) and not ok.is_valid({'runs': {'a': {'batchsize': 3}}})


def test_runs_need_no_pydantic():
    "The study of the paper runs where only torch, Lightning and numpy's family are installed"
    code = 'import sys\nfor m in ("pydantic", "nibabel", "nifti_mrs", "ipywidgets", "typer", "h5py"): sys.modules[m] = None\nimport deepmrs.runs\n'
    subprocess.run([sys.executable, '-c', code], check=True, cwd=Path(__file__).parents[1])


def test_native_runs_do_not_share_what_is_changed(tmp_path):
    file = tmp_path/'two.json'
    file.write_text(json.dumps({'common': TINY, 'runs': {'a': {}, 'b': {}}}))
    runs = native_runs(file, {'test.spectra': 7})
    assert all(r['test']['spectra'] == 7 for r, _ in runs.values()) and json.loads(file.read_text())['common']['test']['spectra'] == 60
