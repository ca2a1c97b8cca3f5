"Situations that users of other tools reported (../shared/data/cases), each through the command line against the right answer that its README states"
import json
import math
import re
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from deepmrs.cli import app
from deepmrs.core import InputError

CASES = Path(__file__).parents[2]/'shared/data/cases'
pytestmark = pytest.mark.skipif(not CASES.exists(), reason='the cases (../shared/data/cases) are not here')
TRUE = {'Cr': 8.2, 'GPC': 1.7, 'Glu': 9.2, 'Gln': 2.6, 'Ins': 6.2, 'NAA': 10.5, 'NAAG': 1.3, 'GABA': 1.6}
SVS, BASIS = '00_control/svs.nii.gz', '00_control/clean.BASIS'
GIVEN = ('--dwell-time', '5e-4', '--spectrometer-frequency', '127.7')


class Run:
    "What the command line said, its status, and the tables that it wrote"

    def __init__(self, out, *args):
        told = CliRunner().invoke(app, ['quantify', *map(str, args), '--out', str(out), '--no-posterior'])
        assert told.exception is None or isinstance(told.exception, (InputError, SystemExit)), repr(told.exception)
        self.out, self.code = out, told.exit_code
        self.said = ' '.join((told.output + (str(told.exception) if isinstance(told.exception, InputError) else '')).split())

    @property
    def table(self): return pd.read_csv(self.out/'concentrations.csv')

    def amounts(self, spectrum=0):
        "(amplitude, sd) of each metabolite of one spectrum"
        table = self.table
        one = table[table.spectrum == table.spectrum.unique()[spectrum]]
        return {r.metabolite: (r.amplitude, r.sd) for r in one.itertuples() if r.kind != 'total'}

    def check(self, true, most, spectrum=0):
        "Every amount within `most` of its error bars of the truth"
        found = self.amounts(spectrum)
        far = {k: f'{found[k][0]:.3g} ± {found[k][1]:.2g} for {v:g}' for k, v in true.items() if not abs(found[k][0] - v) <= most*found[k][1]}
        assert not far, far

    @property
    def statuses(self): return set(self.table.status)


@pytest.fixture(scope='module')
def control(tmp_path_factory):
    "The control: clean spectrum, clean basis set"
    run = Run(tmp_path_factory.mktemp('control'), CASES/SVS, '--basis', CASES/BASIS)
    assert run.code == 0
    run.check(TRUE, 2.5)
    return run


def quantified(tmp_path, data=SVS, basis=BASIS, *more):
    return Run(tmp_path/'out', CASES/data, '--basis', CASES/basis, *more)


def as_control(run, control, factor=1.):
    "Ended well, with the control's amounts within two error bars, each called ok"
    assert run.code == 0 and run.statuses == {'ok'}, run.said
    wanted = control.amounts()
    run.check({k: wanted[k][0]*factor for k in TRUE}, 2.)


AS_CONTROL = {
    '00 with water': (SVS, BASIS, ('--water', CASES/'00_control/ref.nii.gz'), ''),
    '02': (SVS, '02_reference_peak/with_reference.BASIS', (), 'reference line near 0 ppm'),
    '03': (SVS, '03_mac_first_point/with_mac.BASIS', (), ''),
    '04': (SVS, '04_duplicate_name/twice.BASIS', (), 'GABA stands more than once'),
    '05': (SVS, '05_untidy_header/untidy.basis', (), ''),
    '06': ('06_jmrui_two_columns/svs.txt', BASIS, (), 'announces 4 columns'),
    '07': ('07_jmrui_old_wording/svs.txt', BASIS, (), ''),
    '09 unquoted': ('09_raw_unquoted/unquoted.RAW', BASIS, GIVEN, ''),
    '09 text before': ('09_raw_unquoted/textbefore.RAW', BASIS, GIVEN, ''),
    '10': ('10_plain_text/fid.txt', BASIS, GIVEN, 'no header'),
    '11 ms': ('11_te_wrong_unit/te_ms.nii.gz', BASIS, (), 'taken for ms'),
    '11 TR': ('11_te_wrong_unit/tr_ms_only.nii.gz', BASIS, (), 'taken for ms'),
    '11 us': ('11_te_wrong_unit/te_us.nii.gz', BASIS, (), 'taken for µs'),
    '11 overruled': ('11_te_wrong_unit/te_us.nii.gz', BASIS, ('--echo-time', '0.03', '--repetition-time', '1.5'), 'was given and is used'),
    '12 ms': ('12_time_units/msec.nii.gz', BASIS, (), ''),
    '12 none': ('12_time_units/none.nii.gz', BASIS, (), ''),
    '12 overruled': ('12_time_units/says_sec_but_us.nii.gz', BASIS, ('--dwell-time', '5e-4'), 'was given and is used'),
    '13': ('13_scalar_frequency/scalar.nii.gz', BASIS, (), ''),
    '13 overruled': ('13_scalar_frequency/hertz.nii.gz', BASIS, ('--spectrometer-frequency', '127.7'), ''),
    '14': ('14_coil_of_one/coil1.nii.gz', BASIS, ('--dynamics', 'average'), 'aligned in frequency and phase'),
    '16 up': ('16_shifted/shift_+0.169.nii.gz', BASIS, (), ''),
    '16 down': ('16_shifted/shift_-0.169.nii.gz', BASIS, (), ''),
    '17': ('17_other_sign/svs.nii.gz', BASIS, (), 'conjugated'),
    '18 longer': ('18_water_other_length/svs.nii.gz', BASIS, ('--water', CASES/'18_water_other_length/ref.nii.gz'), ''),
    '18 averages': ('18_water_other_length/svs.nii.gz', BASIS, ('--water', CASES/'18_water_other_length/ref_4dyn.nii.gz'), ''),
    '28 stated': ('28_other_centre/stated.nii.gz', BASIS, (), ''),
    '28 given': ('28_other_centre/silent.nii.gz', BASIS, ('--centre-ppm', '2.3'), ''),
    '30 basis': (SVS, '30_mat_struct/basis_struct.mat', (), 'holds a struct'),
    '30 data': ('30_mat_struct/fida_struct.mat', BASIS, (), 'holds a struct'),
    '33': ('33_raw_tramp/plain.RAW', BASIS, GIVEN, ''),
    '35': ('35_big_water/svs.nii.gz', BASIS, (), ''),
    '37': (SVS, '37_json_folder_with_settings/basis', (), 'passed over'),
    '38': (SVS, '38_short_basis/short.BASIS', (), ''),
    '39': (SVS, '39_narrow_basis/narrow.BASIS', (), 'resampled'),
    '40': (SVS, '40_no_te/no_te.BASIS', (), ''),
}


@pytest.mark.parametrize('case', AS_CONTROL)
def test_as_the_control(case, control, tmp_path):
    data, basis, more, sentence = AS_CONTROL[case]
    run = quantified(tmp_path, data, basis, *more)
    as_control(run, control)
    assert sentence in run.said, run.said


REFUSED = {
    '01': (SVS, '01_scrambled_basis/scrambled.BASIS', (), 'scrambled'),
    '10 lacking': ('10_plain_text/fid.txt', BASIS, (), 'dwell_time'),
    '12 us': ('12_time_units/says_sec_but_us.nii.gz', BASIS, (), 'µs'),
    '12 ms': ('12_time_units/unit_none_but_ms.nii.gz', BASIS, (), 'ms'),
    '13': ('13_scalar_frequency/hertz.nii.gz', BASIS, (), 'in Hz that would be 127.7 MHz'),
    '15': ('15_untagged_averages/untagged.nii.gz', BASIS, (), 'has no tag; DIM_COIL'),
    '24': ('24_mrsi_dynamic/mrsi_dyn.nii.gz', BASIS, (), '--dynamics'),
    '25': ('25_edited/mega.nii.gz', BASIS, (), 'DIM_EDIT'),
    '26': ('26_phosphorus/31P.nii.gz', '00_control/clean.BASIS', (), 'nucleus'),
    '26 brain preset': ('26_phosphorus/31P.nii.gz', '26_phosphorus/31P.BASIS', ('--preset', 'brain-7t'), 'preset'),
    '32': ('32_field_mismatch/svs_123.nii.gz', BASIS, (), 'deepmrs basis simulate'),
    'drop': (SVS, BASIS, ('--drop', 'Lac'), 'Lac is not in'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_refused_in_a_sentence(case, tmp_path):
    data, basis, more, sentence = REFUSED[case]
    run = quantified(tmp_path, data, basis, *more)
    assert run.code == 1 and sentence in run.said and not (tmp_path/'out/concentrations.csv').exists(), run.said


def test_03_first_points_stay(tmp_path):
    from deepmrs.io import read_basis
    mac, clean = read_basis(CASES/'03_mac_first_point/with_mac.BASIS'), read_basis(CASES/BASIS)
    for name in clean.names: assert abs(complex(mac[name][0]) - complex(clean[name][0])) < 1e-4*abs(complex(clean[name][0]))


def test_04_one_can_be_left_out(tmp_path):
    run = quantified(tmp_path, SVS, '04_duplicate_name/twice.BASIS', '--drop', 'GABA')
    assert run.code == 0 and 'GABA' not in run.amounts()
    kept = Run(tmp_path/'kept', CASES/SVS, '--basis', CASES/BASIS, '--keep', 'NAA,Cr,GPC,Glu,Ins', '--preset', 'none')
    assert [n for n in kept.amounts()] == ['Cr', 'GPC', 'Glu', 'Ins', 'NAA']


def test_15_untagged_averages_named(tmp_path):
    run = quantified(tmp_path, '15_untagged_averages/untagged.nii.gz', BASIS, '--dimensions', 'DIM_DYN', '--dynamics', 'average')
    assert run.code == 0 and '8 repetitions' in run.said
    run.check(TRUE, 3.)


def test_16_far_off_is_right_or_not_ok(control, tmp_path):
    run = quantified(tmp_path, '16_shifted/shift_+0.350.nii.gz')
    if run.statuses == {'ok'}: as_control(run, control)
    else: assert run.code == 1 and 'ok' not in run.statuses


def test_19_noise_and_low_snr(tmp_path):
    noise = quantified(tmp_path, '19_low_snr/noise_only.nii.gz')
    assert noise.statuses == {'no_signal'} and noise.code == 1
    low = Run(tmp_path/'low', CASES/'19_low_snr/snr3.nii.gz', '--basis', CASES/BASIS)
    low.check(TRUE, 3.)


@pytest.mark.parametrize('name', ['fwhm_16Hz', 'fwhm_28Hz'])
def test_20_broad_lines(name, tmp_path):
    quantified(tmp_path, f'20_broad/{name}.nii.gz').check(TRUE, 3.)


def test_21_empty_voxels_of_an_image(tmp_path):
    "NaN and zeros alike: five voxels NaN with a reason, eleven quantified, the affine bit for bit"
    runs = {k: Run(tmp_path/k, CASES/f'21_mrsi_nan/{k}.nii.gz', '--basis', CASES/BASIS) for k in ('nan', 'zeros')}
    for name, run in runs.items():
        assert run.code == 0, run.said
        one = run.table[run.table.metabolite == 'NAA']
        assert (one.status == 'empty').sum() == 5 and one.amplitude.isna().sum() == 5 and (one.status == 'ok').sum() == 11
        image = nibabel.load(run.out/'concs/raw/NAA.nii.gz')
        assert np.array_equal(image.affine, nibabel.load(CASES/f'21_mrsi_nan/{name}.nii.gz').affine) and image.shape[:2] == (4, 4)
    assert np.allclose(*(r.table.amplitude for r in runs.values()), equal_nan=True) and 'NaN' in runs['nan'].said


def test_24_image_with_repetitions(tmp_path):
    run = quantified(tmp_path, '24_mrsi_dynamic/mrsi_dyn.nii.gz', BASIS, '--dynamics', 'separate')
    assert run.code == 0, run.said
    image = nibabel.load(run.out/'concs/raw/NAA.nii.gz')
    naa = image.get_fdata()
    assert image.shape == (2, 2, 1, 2) and np.allclose(naa[..., 1]/naa[..., 0], 0.7, rtol=.02), 'the second repetition holds 0.7 of the first'
    run.check(TRUE, 3.)
    fit = nibabel.load(run.out/'fit.nii.gz')
    assert fit.shape == (2, 2, 1, 1024, 2) and json.loads(fit.header.extensions[0].get_content())['dim_5'] == 'DIM_DYN'
    mean = Run(tmp_path/'mean', CASES/'24_mrsi_dynamic/mrsi_dyn.nii.gz', '--basis', CASES/BASIS, '--dynamics', 'average')
    assert nibabel.load(mean.out/'concs/raw/NAA.nii.gz').shape == (2, 2, 1)


def test_25_edited_rows_tagged_as_averages(tmp_path):
    run = quantified(tmp_path, '25_edited/interleaved_as_dyn.nii.gz', BASIS, '--dynamics', 'average')
    assert 'far more than averages do' in run.said and '--dynamics separate' in run.said


P31 = '26_phosphorus/'
OTHER = {'nii': (P31 + '31P.nii.gz', P31 + '31P.BASIS', ()), 'fsl': (P31 + '31P.nii.gz', P31 + 'fsl_basis', ()), 'jmrui': (P31 + '31P_field.txt', P31 + '31P.BASIS', ()),
         'raw': (P31 + '31P.RAW', P31 + '31P.BASIS', ('--dwell-time', '2e-4', '--nucleus', '31P')), '2H': ('27_deuterium/2H.nii.gz', '27_deuterium/2H.BASIS', ())}


@pytest.mark.parametrize('case', OTHER)
def test_26_27_other_nuclei(case, tmp_path):
    data, basis, more = OTHER[case]
    run = quantified(tmp_path, data, basis, *more)
    assert run.code == 0 and run.statuses == {'ok'} and 'Preset none' in run.said, run.said
    run.check(json.loads((CASES/data).with_name('truth.json').read_text()), 2.)


def test_28_silent_centre(tmp_path):
    run = quantified(tmp_path, '28_other_centre/silent.nii.gz')
    assert run.code == 1 and 'ok' not in run.statuses and '--centre-ppm' in run.said


def test_33_scale_of_raw(tmp_path):
    plain, scaled = (Run(tmp_path/n, CASES/f'33_raw_tramp/{n}.RAW', '--basis', CASES/BASIS, *GIVEN) for n in ('plain', 'scaled'))
    ratio = np.array([plain.amounts()[k][0]/scaled.amounts()[k][0] for k in TRUE])
    assert np.allclose(ratio, 4, rtol=1e-3), ratio


def test_38_says_that_it_cut(tmp_path):
    assert re.search(r'first [\d.]+ s|cut', quantified(tmp_path, SVS, '38_short_basis/short.BASIS').said)
