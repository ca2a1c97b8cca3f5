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
from deepmrs.runs import agreement, compare, convert_file, ingredients, make_test_set, read_answers, run_command, run_file, truncated_fit
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
    real = run | {'data_dir': 'a.mat', 'data_name': 'y', 'data_conj': True, 'wr': [True, 50], 'aug_params': [3, 10, .2, .4, 8, .1], 'sim_params': None, 'test_nos': 4, 'banorm': True, 'kw': 7, 'lr': 1e-4}
    native, _ = from_paper(real, 'x')
    assert native['augment'] == {'shift': 5., 'phase': pytest.approx(.1*np.pi), 'amplitude': .2, 'damping': 8., 'noise': .1, 'share': .75} and native['conjugate_data'] is False
    half = 50/123.23
    assert native['prepare'] == {'min_snr': None, 'max_linewidth': None, 'min_likeness': None, 'water_band': pytest.approx([4.65 - half, 4.65 + half], abs=1e-4), 'components': 15} and native['mend_measured']
    filtered, notes = from_paper(real | {'wr': [False, 50], 'quality_filt': [True, 900, 1100], 'aug_params': None}, 'x')
    assert filtered['prepare'] == {'water': False} and filtered['augment'] is None and any('quality filter' in n for n in notes)
    assert native['encoder']['kernels'] == [7, 5] and native['encoder']['batch_norm'] and native['held_out'] == 4 and native['learning_rate'] == 1e-4 and native['data_key'] == 'y'


ODD = [None, True, -1, 1.5, float('nan'), 10**400, '', 'x', [], ['a'], [[1]], {}, {'a': 1}]


def test_a_value_of_the_wrong_kind_is_named(tmp_path):
    "Each key of the paper's file and of ours, with values of every kind: a run, or one sentence"
    from deepmrs.config import RunConfig, read_runs
    def attempt(run):
        (tmp_path/'r.json').write_text(json.dumps(run))
        try: read_runs(tmp_path/'r.json')
        except InputError as e:
            assert '\n' not in str(e) and len(str(e)) < 600
            return str(e)
    for key in RunConfig.model_fields:
        for value in ODD: attempt({'basis': 'b.npz', key: value})
    for value in ODD: attempt({'runs': {'a': value}})
    if not (SEED/'exp4.json').exists(): pytest.skip("the paper's run file (../shared/data/seed) is not here")
    paper = json.loads((SEED/'exp4.json').read_text())['runs'][2]
    for key in paper:
        for value in ODD: attempt({'runs': [paper | {key: value}]})
    assert '"lr"' in attempt({'runs': [paper | {'lr': 'fast'}]}) and 'must be a number' in attempt({'runs': [paper | {'sigLen': [1]}]})
    assert 'must be a list of numbers' in attempt({'runs': [paper | {'max_c': [None]}]})


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


QUIET = {'water': False, 'aligned': False, 'phased': False}


def cohort_file(tmp_path, name='found.npz', count=60, spoil=(), seed=0, **keys):
    "(run file on measured spectra, their truth, gains [count]); spectra in `spoil` are nothing but noise"
    from deepmrs.io import write_spectra
    parts = ingredients(read_runs(put(tmp_path/'a.json'))['a'][0])
    spectra, truth = parts.simulator.spectra(count, seed)
    gain = 10**(2*torch.rand(count, 1, generator=torch.Generator().manual_seed(seed)) + 3)
    fids = spectra.fids.clone()
    fids[list(spoil)] = 20*torch.randn(len(spoil), fids.shape[-1], dtype=fids.dtype, generator=torch.Generator().manual_seed(1))
    write_spectra(Spectra(fids*gain, acquisition=spectra.acquisition), tmp_path/name)
    return put(tmp_path/'b.json', data=[name], out=str(tmp_path/'out'), **keys), truth, gain[:, 0]


def test_measured_data(tmp_path):
    file, truth, gain = cohort_file(tmp_path, spoil=(3, 55), held_out=10, ensemble=2)
    said = []
    out = run_file(file, changes={'spectra_per_epoch': 96}, say=said.append)['b']
    table, quality, cohort, agree = (pd.read_csv(out/f'{n}.csv') for n in ('concentrations', 'quality', 'cohort', 'agreement'))
    assert set(table.method) == {'network', 'hybrid', 'fit'} and table.spectrum.nunique() == 10 and {'NAA', 'tCr', 'MM'} <= set(table.metabolite)
    for m in ('hybrid', 'fit'):  # in the data's own units again, whatever the size they were given
        one = table.query('method == @m and metabolite == "NAA"')
        ok = (one.status == 'ok').to_numpy()
        assert ok.sum() == 9 and np.allclose((one.amplitude/(truth[-10:, 0]*gain[-10:]).numpy())[ok], 1, atol=.35)
    assert table[table.method == 'network'].spread.gt(0).any() and table[table.method != 'network'].spread.isna().all()
    assert (cohort.role == 'held out').sum() == 10 and list(cohort.status[[3, 55]]) == ['low_snr']*2 and cohort.role[3] == 'left out' and (cohort.role == 'learnt from').sum() == 49
    assert quality.query('method == "fit" and status == "ok"').residual_over_noise.between(.6, 1.4).all() and (quality[quality.spectrum == 55].status != 'ok').all()
    assert agree.query('method == "hybrid"').error_bars_apart.median() < .1 and '49 measured' in (out/'member_2/model.json').read_text()
    assert {f'{n}.png' for n in ('cohort', 'fit_network', 'fit_hybrid', 'fit_fit', 'agreement', 'training')} <= {f.name for f in (out/'figures').iterdir()} and any('held-out' in s for s in said)
    first = table[table.method == 'network']
    run_file(file, changes={'mode': 'test'}, say=said.append)  # the ensemble is loaded, and says the same
    again = pd.read_csv(out/'concentrations.csv')
    assert np.allclose(again[again.method == 'network'].amplitude, first.amplitude, rtol=1e-4)


def test_measured_spectra_held_out_are_never_learnt_from(tmp_path):
    file, *_ = cohort_file(tmp_path, prepare=QUIET)
    for held, kept in ((None, 6), (0, 60), (13, 13)):
        parts = ingredients(read_runs(file, changes={'held_out': held})['b'][0])
        assert len(parts.held) == kept and len(parts.spectra) == (60 if held == 0 else 60 - kept) and type(parts.spectra).__name__ == 'Augmented'
        if held != 0: assert not {n for n in parts.spectra.names} & set(parts.held.spectra.names) and parts.held.spectra.names == [str(i) for i in range(60 - kept, 60)]
    plain = ingredients(read_runs(file, changes={'augment': None, 'prepare': None})['b'][0])
    assert type(plain.spectra) is Spectra and (plain.cohort.table.status == 'ok').all() and plain.cohort.table.scale.max()/plain.cohort.table.scale.min() > 10
    tallest = [Spectra(x, acquisition=plain.decoder.acquisition.replace(points=x.shape[-1])).spectrum().abs().amax(-1).median() for x in (plain.spectra.fids, plain.simulator(64, torch.Generator().manual_seed(0)).fids)]
    assert .5 < tallest[0]/tallest[1] < 2  # the size that the priors mean
    with pytest.raises(InputError, match='good enough'): ingredients(read_runs(file, changes={'prepare.min_snr': 1e6})['b'][0])
    with pytest.raises(InputError, match='held_out'): ingredients(read_runs(file, changes={'held_out': 60})['b'][0])


@needs_seed
def test_the_papers_run_file_on_measured_spectra(tmp_path):
    "HLSVD, quality filter, augmentation, test spectra and the regularised macromolecules by the paper's own keys, on spectra in a .mat file"
    run = json.loads((SEED/'exp4.json').read_text())['runs'][3]
    parts = ingredients(read_runs(SEED/'exp4.json')['1'][0])
    b = parts.simulator(40, torch.Generator().manual_seed(0))
    t = torch.arange(2048)*2.5e-4
    scipy.io.savemat(tmp_path/'brains.mat', {'y': (b.fids + 200*torch.exp(-20*t)).conj().resolve_conj().numpy().T})  # as files have it
    run |= {'data_dir': 'brains.mat', 'data_name': 'y', 'data_conj': False, 'wr': [True, 50], 'quality_filt': [True, 900, 1100], 'aug_params': [4, 4, .1, .2, 4, .0], 'test_nos': 8, 'sim_params': None, 'max_epoch': 1, 'ens': 2, 'version': '1/'}
    (tmp_path/'exp.json').write_text(json.dumps({'runs': [run]}))
    for f in ('basisset.mat', 'mm.mat'): (tmp_path/f).write_bytes((SEED/f).read_bytes())
    out = run_command(tmp_path/'exp.json', change=['progress=false', 'quality_filt=[false]'], out=tmp_path/'out', say=lambda s: None)['1']
    table, quality = pd.read_csv(out/'concentrations.csv'), pd.read_csv(out/'quality.csv')
    assert table.spectrum.nunique() == 8 and 'MM2.03' in set(table.metabolite) and quality.truncation_ms.notna().any()
    naa = table.query('method == "fit" and metabolite == "tNAA"').amplitude.to_numpy()
    true = (b.params[-8:, 12] + b.params[-8:, 13]).numpy()
    assert np.median(np.abs(naa/true - 1)) < .25


def test_agreement_of_methods():
    rows = [{'method': m, 'spectrum': i, 'metabolite': 'NAA', 'status': 'ok' if i < 9 else 'broad', 'scale': 10.**i, 'amplitude': 10.**i*(1 + .1*i + (.05 if m == 'network' else 0)), 'sd': 10.**i*.1} for m in ('network', 'fit') for i in range(10)]
    a, = agreement(pd.DataFrame(rows)).to_dict('records')
    assert a['spectra'] == 9 and abs(a['error_bars_apart'] - .5) < 1e-6 and a['correlation'] > .999 and 1 < a['ratio'] < 1.06


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


def test_text_among_the_answers_is_no_answer(tmp_path):
    "In both kinds of table: NaN where text stands, the other amounts as they are"
    rows = 'spectrum,metabolite,amplitude\na,NAA,n/d\na,Cr,2\nb,NAA,3\nb,Cr,4\n'
    (tmp_path/'rows.csv').write_text(rows)
    (tmp_path/'columns.csv').write_text('NAA,Cr\nn/d,2\n3,4\n')
    (tmp_path/'text.csv').write_text('spectrum,metabolite,amplitude\na,NAA,much\nb,NAA,little\n')
    for name in ('rows.csv', 'columns.csv'):
        np.testing.assert_equal(read_answers(tmp_path/name, ['NAA', 'Cr'], 2).numpy(), [[np.nan, 2], [3, 4]])
    assert read_answers(tmp_path/'text.csv', ['NAA'], 2).isnan().all()


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


def test_a_folder_holds_one_number_of_networks(tmp_path):
    "An ensemble never takes in a member of an earlier training; the same number again, or another folder, is fine"
    file, tests = put(tmp_path/'t.json', out=str(tmp_path/'o')), {'test.figures': False, 'test.export': [], 'test.spectra': 20, 'test.monte_carlo': 0}
    go = lambda n: run_file(file, changes=tests | {'ensemble': n}, say=lambda text: None)
    go(2), go(2)
    before = (tmp_path/'o/member_2/model.safetensors').read_bytes()
    with pytest.raises(InputError, match='another number of networks .*member_1'): go(1)
    assert (tmp_path/'o/member_2/model.safetensors').read_bytes() == before
    go(3)
    with pytest.raises(InputError, match='member_3'): go(2)
