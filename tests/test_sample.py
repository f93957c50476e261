"What the drawn sample must show: the recorded ladder, which is the command's, climbs on it"
from pathlib import Path
import pytest
from resnet_course.cli import _ladder, rungs
from resnet_course.data import course_path, run_settings
from resnet_course.kit.checkpoint import first_batch
from resnet_course.kit.identity import run_setup
from resnet_course.kit.results import results, summary

runs = results(Path(__file__).parent.parent/'results'/'sample')
means = summary(runs).accuracy

def test_each_rung_has_three_seeds_of_one_setting():
    assert {o: set(runs.seed[runs.model==o]) for o in rungs}==dict.fromkeys(rungs, {42,43,44})
    for what in ('data','settings','epochs','lr','precision'): assert len({str(o[what]) for o in runs.record})==1, what
    assert all(o['complete'] for o in runs.record)

@pytest.mark.parametrize('lower, upper', [*zip(rungs[:3], rungs[1:4]), ('fcn','resnet50')])
def test_the_ladder_climbs(lower, upper): assert means[upper] >= means[lower]

def test_resnet18_is_far_above_the_baseline_and_nothing_is_solved():
    assert means['resnet18'] >= means['fcn']+.1
    assert runs.accuracy.max() < .98

def test_the_records_are_of_the_ladder_as_it_is():
    path = course_path('sample')
    exp = _ladder(path, run_settings(path), None, None)
    dls = exp.loaders(path)
    for rec in runs.record[runs.seed==42]:
        assert (exp.epochs, exp.lr, exp.learner['precision'])==(rec['epochs'], rec['lr'], rec['precision'])
        assert rec['settings']==run_settings(path)
        learn = exp.maker(dls, exp.nets[rec['model']](dls.c), **exp.learner)
        setup = run_setup(learn, exp.fit, first_batch(dls)[0])
        for k in ('net','batch_size','optimiser','loss','transforms','callbacks','schedule'): assert setup[k]==rec['setup'][k], k

def test_photos_get_chapter_14s_epochs_and_rate(tmp_path):
    settings = dict(presize=160, resize=128, bs=128)
    exp = _ladder(tmp_path, settings, None, None)
    assert (exp.epochs, exp.lr, exp.recipe)==(5, 3e-3, 'chapter14')
    assert _ladder(tmp_path, settings, 2, None).epochs==2
