"The checks of the exercises: right answers in several forms pass, wrong ones are refused in the right words"
import itertools
import pytest
from fastai.vision.all import *
from resnet_course import check
from resnet_course.kit.files import CourseError
from answers import rights, wrongs
import answers_later, answers_next, answers_why   # they add to them

modules = {'shortcut','resblock','stem','stage','resnet','narrow','fully_conv','bottleneck','stride_first',
    'plain_identity','preact','hunt_loss','hunt_block','hunt_expansion','hunt_preact','capstone','first_block','dense_layer'}
numbers = {'batches','sixth_block','deeper','ratio','min_scale',
    'keras_sides','loss_floor','cache_bytes','peak_share','smoothing_best','map_size','first_loss','shuffled','growth','twice_size','first_gradient'}
answers = {name: next(o[1:] for o in rights if o[0]==name) for name in check.exercises}

def names(cases): return [f'{o[0]}-{i}' for i,o in enumerate(cases)]

@pytest.fixture(autouse=True)
def own_file(tmp_path, monkeypatch): monkeypatch.setenv('RESNET_COURSE_PROGRESS', str(tmp_path/'progress.json'))

@pytest.mark.parametrize('exercise, answers, named', rights, ids=names(rights))
def test_right(exercise, answers, named, capsys):
    assert getattr(check, exercise)(*answers, **named) is True
    out = capsys.readouterr().out
    assert ': yes. ' in out and out.count('\n')==1
    assert check.progress().query('passed!=""').check.tolist()==[f'check.{exercise}']

@pytest.mark.parametrize('exercise, words, answers, named', wrongs, ids=names(wrongs))
def test_wrong(exercise, words, answers, named, capsys):
    assert getattr(check, exercise)(*answers, **named) is False
    out = capsys.readouterr().out
    assert ': no. ' in out and words in out and out.count('\n')<=2 and 'Traceback' not in out
    assert not check.progress().passed.any()

def test_enough_of_each():
    for name in check.exercises:
        assert sum(o[0]==name for o in rights)>=2 and len({o[1] for o in wrongs if o[0]==name})>=4, name

def raises(*args, **kwargs): raise NotImplementedError
class Empty(nn.Module):
    def __init__(self, *args): super().__init__()
class EmptyForward(Empty):
    def forward(self, x): ...

blanks = [None, ..., raises, lambda *a, **k: None, Empty, EmptyForward]
def fits(name, blank):   # a number is not asked for as a function, nor anything but a module as a class
    return name in modules if isinstance(blank, type) else name not in numbers or not callable(blank)

@pytest.mark.parametrize('name, blank', [o for o in itertools.product(check.exercises, blanks) if fits(*o)])
def test_blank(name, blank, capsys):
    args,named = answers[name]
    assert getattr(check, name)(*[blank for _ in args], **{k:blank for k in named}) is False
    assert 'not written yet' in capsys.readouterr().out

def test_a_folder_is_no_progress(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('RESNET_COURSE_PROGRESS', str(tmp_path))
    for f in (check.progress, check.reset):
        with pytest.raises(CourseError, match='a folder: name a file'): f()
    exercise,answers,named = rights[0]
    assert getattr(check, exercise)(*answers, **named) is True and 'name a file' in capsys.readouterr().out
