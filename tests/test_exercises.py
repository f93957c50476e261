"What the exercises rest on: guesses are kept before results are shown, hunts are wrong as they stand, questions have answers"
import json, re
from pathlib import Path
import pytest
from fastai.vision.all import *
from resnet_course import check
from resnet_course.check import judge, transfer
from conftest import randomise_bn

nbs = Path(__file__).parent.parent/'nbs'
lessons = {o.stem:json.loads(o.read_text(encoding='utf-8'))['cells'] for o in sorted(nbs.glob('[0-9]*.ipynb'))}
def source(c): return ''.join(c['source'])
fold = r'<details><summary>{}</summary>\n\n(.+?)\n\n</details>'

# --- predictions ------------------------------------------------------------------------------------------------------
@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv('RESNET_COURSE_PROGRESS', str(tmp_path/'p.json'))
    return lambda: json.loads((tmp_path/'p.json').read_text())

def test_a_guess_is_kept_before_the_result_is_computed(kept, monkeypatch):
    def later(*args): raise ZeroDivisionError
    monkeypatch.setattr(transfer, 'get_fcn', later)
    with pytest.raises(ZeroDivisionError): check.first_loss(7.)
    assert kept()=={'guesses':{'first loss':7.}}

def test_the_first_guess_stays(kept, capsys):
    assert check.growth(15) and check.growth(4)
    assert capsys.readouterr().out.count('you guessed 15, it is 4')==2 and kept()['guesses']=={'deviation':15.}
    assert check.batches(73, 31) and kept()['guesses']=={'deviation':15.}   # a pass leaves guesses alone
    assert check.progress().query('passed!=""').check.tolist()==['check.batches','check.growth']
    check.reset()
    assert check.growth(4) and 'you guessed 4' in capsys.readouterr().out

@pytest.mark.parametrize('text', ['{"guesses": 3}', '{"guesses": {}, "growth": 3}'])
def test_a_file_with_other_guesses_is_no_progress(text, tmp_path, monkeypatch, capsys):
    (tmp_path/'p.json').write_text(text)
    monkeypatch.setenv('RESNET_COURSE_PROGRESS', str(tmp_path/'p.json'))
    assert check.growth(4) and 'not noted' in capsys.readouterr().out and (tmp_path/'p.json').read_text()==text

def test_results_are_what_the_lesson_says():
    "Without a guess the check knows nothing; with any it computes the same"
    for f,args,low,high in [(check.first_loss,(1,),2.2,2.6), (check.growth,(1,),3.7,4.3), (check.first_gradient,(1,),1e5,1e7)]:
        assert low<float(re.search('it is ([0-9.e+]+)', judge.verdict(f, *args))[1])<high
    said = judge.verdict(check.shuffled, 1, 1)
    assert 'averaged: you guessed 1, it is 0 ' in said and 60<int(re.search(r'flattened: you guessed 1, it is (\d+)', said)[1])<95

# --- hunts ------------------------------------------------------------------------------------------------------------
hunts = [(name,c) for name,cells in lessons.items() for c in cells if re.match('# exercise: hunt_', source(c))]
@pytest.mark.parametrize('cell', [c for _,c in hunts], ids=lambda c: source(c).split()[2])
def test_a_hunt_runs_and_is_wrong(cell, capsys):
    "It trains without an error, and the check says how many mistakes are left, and not where they are"
    name,scope = source(cell).split()[2],dict(globals())
    exec('from resnet_course.resblock import ResBlock\n'+source(cell), scope)
    answer = scope[re.search(r'^(?:class|def) (\w+)', source(cell), re.M)[1]]
    m,x = (answer(10),torch.randn(4,3,32,32)) if name=='hunt_loss' else (answer(4, 8, 2),torch.randn(4,4,8,8))
    y = m(x)
    y.sum().backward()
    assert len(y)==4 and getattr(check, name)(answer) is False
    assert re.search('not changed yet: (2|3) mistakes are left|not changed yet: 339,823,210', capsys.readouterr().out)

def test_there_are_some_of_each_kind():
    assert len(hunts)>=4 and {o.split('_')[0] for o,_ in hunts}=={'02','04','06','11'}

# --- the capstone -----------------------------------------------------------------------------------------------------
def test_the_capstones_solution_is_timms_net():
    import timm
    text = '\n'.join(source(c) for c in lessons['08_classics'])
    code = re.search(r'### Exercise [\w.]+: ResNet-50 from an empty cell.*?<summary>Solution</summary>\n\n```python\n(.*?)```', text, re.S)[1]
    scope = dict(globals())
    exec(code, scope)
    theirs,mine = randomise_bn(timm.create_model('resnet50d', num_classes=10)),scope['my_resnet50'](10)
    a,b = mine.state_dict(),theirs.state_dict()
    # timm registers a block's shortcut after its branch, as the solution does
    assert len(a)==len(b) and [o.shape for o in a.values()]==[o.shape for o in b.values()]
    mine.load_state_dict(dict(zip(a, b.values())))
    for size in ((128,128),(131,97)):
        x = torch.randn(2,3,*size)
        with torch.no_grad(): assert torch.allclose(mine.eval()(x), theirs.eval()(x), atol=1e-4, rtol=1e-4)
    with torch.no_grad(): assert torch.allclose(mine.train()(x), theirs.train()(x), atol=1e-3, rtol=1e-3)
    for p,q in zip(mine.buffers(), theirs.buffers()): assert torch.allclose(p, q, atol=1e-4, rtol=1e-4)

# --- questions --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('name', [o for o in lessons if '01'<=o[:2]<='07'])
def test_five_quick_questions(name):
    found, = [source(c) for c in lessons[name] if '### Five quick questions' in source(c)]
    asked = re.split(r'^\*\*\d\. ', found, flags=re.M)[1:]
    assert len(asked)==5
    for o in asked:
        question,rest = o.split('**\n\n', 1)
        answers = re.findall(fold.format('Answer'), rest, re.S)
        assert question.endswith('?') or question.endswith('.') and '?' in question or question.split()[0]=='Name', question
        assert len(answers)==1 and len(answers[0].split())>8, question

@pytest.mark.parametrize('name', [o for o in lessons if any('### Without a check' in source(c) for c in lessons[o])])
def test_open_questions_have_hints_and_answers(name):
    text, = [source(c) for c in lessons[name] if '### Without a check' in source(c)]
    asked = re.split(r'^- ', text, flags=re.M)[1:]
    assert asked
    for o in asked:
        assert len(re.findall(fold.format('Hint'), o, re.S))==1 and len(re.findall(fold.format('Answer'), o, re.S))==1, o[:80]

def test_few_only_count_or_recall():
    "Less than a fifth of the exercises on the path ask for a number that is worked out, and each has a check"
    counted = {'batches','sixth_block','deeper','ratio'}
    path = [n for n,(number,_) in check.exercises.items() if number.split('.')[0] in
            ('data','training','fcn','resblock','resnet','bottleneck','degradation')]
    assert counted<=set(path) and len(counted)<len(path)/5
