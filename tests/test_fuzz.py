"""A few hundred damaged files for the readers, run files, models and results.

hypothesis makes half of the choices, so that a fault is shown with the smallest damage that it
finds. `python tools/fuzz.py` reads as many as one likes.
"""

import random
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / 'tools'))
pytest.importorskip('resource', reason='limits of memory need a Unix')
if not Path('/proc/self/clear_refs').exists():
    pytest.skip('the fuzzer reads memory from /proc, which is not here', allow_module_level=True)
import fuzz  # noqa: E402

READERS = {
    'spectra': 150,
    'basis': 80,
    'runs': 60,
    'model': 50,
    'result': 50,
    'answers': 20,
    'lcmodel': 20,
    'fsl': 20,
}  # inputs of each, twice


@pytest.fixture(scope='module')
def worker():
    with fuzz.Worker() as w:
        yield w


@pytest.fixture(scope='module')
def inputs():
    cases = fuzz.corpus()
    return {reader: fuzz.Inputs(cases, [reader]) for reader in READERS}


def hold(worker, name, reader, files, main, options):
    "Read one input; it must give a result or one sentence"
    kind, text, *_ = worker(reader, files, main, options)
    assert kind in ('ok', 'refused'), f'{kind}, from {name} with {options}: {text}'
    return kind


def test_the_corpus_itself_is_read(worker, inputs):
    "What deepmrs has written gives a result, so that the damage is what is tested"
    import fuzz_corpus

    for reader in READERS:
        for cases in inputs[reader].groups.values():
            for c in cases:
                if not c.as_it_is and not c.name.startswith('real'):
                    assert hold(worker, c.name, c.reader, c.files, c.main, {}) == 'ok', c.name
    assert any(c.as_it_is for i in inputs.values() for c in i.hostile) and fuzz_corpus.FORMS


def test_small_files_that_ask_for_much(worker, inputs):
    for each in inputs.values():
        for c in each.hostile:
            assert hold(worker, c.name, c.reader, c.files, c.main, {}) == 'refused', c.name


@pytest.mark.parametrize('reader', READERS)
def test_damaged(worker, inputs, reader):
    @settings(
        max_examples=READERS[reader],
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(rnd=st.one_of(st.randoms(use_true_random=True), st.randoms(use_true_random=False)))
    def one(rnd):
        hold(worker, *inputs[reader](rnd))

    one()


@pytest.mark.parametrize('reader', READERS)
def test_numbered(worker, inputs, reader):
    "As `tools/fuzz.py` makes them: more kinds of damage than hypothesis, which likes small numbers"
    first = len(inputs[reader].hostile)
    for i in range(first, first + READERS[reader]):
        hold(worker, *inputs[reader].number(0, i))


def test_faults_are_seen(worker):
    "The fuzzer itself: damage changes files, and what readers may not do is noticed"
    from fuzz_mutate import WAYS, damage

    rnd = random.Random(0)
    data = bytes(range(256)) * 4
    for form in WAYS:
        assert sum(damage(data, form, rnd, data) != data for _ in range(20)) > 12, form
    seen = fuzz.Watch('/somewhere')
    seen.active = True
    with pytest.raises(FileNotFoundError):
        open('/nowhere/at/all', 'w')
    sys.audit('pickle.find_class', 'a', 'b')
    seen.active = False
    assert seen.seen == ['wrote to /nowhere/at/all', 'unpickled something']
    assert (
        fuzz._sentence_fault('One sentence.') is None
        and 'holds' in fuzz._sentence_fault('Two\nlines')
        and 'characters' in fuzz._sentence_fault('x' * 2000)
    )
