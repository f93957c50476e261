"The pictures in images/ and in the lessons: made from the nets and the records that are there now"
import xml.etree.ElementTree as ET
from pathlib import Path
import pytest
from fastai.vision.all import *
from resnet_course.kit.drawing import course_style, draw_block, draw_flow, draw_tensors, net_arms, net_flow, net_tensors
from resnet_course.kit.files import CourseError
from resnet_course.kit.timing import plot_profiles
from resnet_course.cli import save_curves
from resnet_course.kit.results import plot_history
from resnet_course.pictures import in_words, ladder_rows
from resnet_course.all import *

top = Path(__file__).parent.parent

@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close('all')

@pytest.mark.parametrize('name', ['ladder-light', 'ladder-dark'])
def test_the_ladder_is_that_of_the_records(name):
    "If not, run `.ci/pictures`"
    words = ' '.join(ET.parse(top/'images'/f'{name}.svg').getroot().itertext())
    assert in_words(ladder_rows(top/'results')) in words

def test_what_is_in_words_is_in_the_rows():
    rows = pd.DataFrame(dict(title=['a','b'], accuracy=[.5,.755]))
    assert 'a 50.0%, b 75.5%.' in in_words(rows)

made = dict(resnet18=lambda: resnet18(10), resnet50=lambda: resnet50(10), resnet_v1=lambda: resnet_v1(50, 10),
    preact=lambda: preact_resnet(18, 10), fcn=lambda: get_fcn(10), cifar=lambda: cifar_resnet(20), grey=lambda: resnet18(10, c_in=1))

@pytest.mark.parametrize('name, size, shortcuts, own', [('resnet18', (3,64,64), 8, 3), ('resnet50', (3,70,33), 16, 4),
    ('resnet_v1', (3,64,64), 16, 4), ('preact', (3,64,64), 8, 3), ('fcn', (3,64,64), 0, 0), ('cifar', (3,32,32), 9, 2),
    ('grey', (1,64,64), 8, 3)])
def test_the_tensors_of_a_net(name, size, shortcuts, own):
    "From the image to the scores; a shortcut that changes the shape is dashed"
    net = made[name]().double()
    shapes,skips = net_tensors(net, *size)
    assert shapes[0]==size and shapes[-1]==(10,) and net.training
    assert len(skips)==shortcuts and sum(shapes[a-1]!=shapes[b] for a,b,_ in skips)==own
    arcs = [o for o in draw_tensors(shapes, skips).patches if isinstance(o, matplotlib.patches.PathPatch)]
    assert [o.get_linestyle() for o in arcs].count('--')==own

def test_a_drawing_of_blocks_marks_what_is_new():
    def bold(ax): return [o.get_text() for o in ax.texts if o.get_weight()=='bold' and o.get_text()!='+']
    one = dict(before=[], branch=['a','b','c'], shortcut=[], after=['r'])
    assert bold(draw_block(one))==bold(draw_block(one, one))==[]
    assert bold(draw_block(dict(one, branch=['a','x','c'], after=[]), one))==['x']
    assert bold(draw_block(dict(one, shortcut=['b']), one))==['b']
    assert bold(draw_block(dict(one, branch=['b','a','c']), one)) in (['b'],['a'])
    assert bold(draw_block(one, dict(one, shortcut=None)))==[]

def test_what_cannot_be_followed():
    class Odd(nn.Module):
        def forward(self, x): return x if x.sum()>0 else -x
    for f in (net_flow, net_arms, lambda o: net_tensors(o, 3, 8, 8)):
        with pytest.raises(CourseError, match='torch.fx cannot follow Odd'): f(Odd())

def test_seeds_are_a_mean_and_a_band():
    "Also where runs differ in length, or have lost their numbers"
    def rec(model, *accs): return dict(model=model, history=[dict(epoch=i, valid_loss=1-(a or 0), accuracy=a) for i,a in enumerate(accs)])
    _,ax = plot_history([rec('a', .1, .5), rec('b', .2), rec('a', .3, None)])
    (a,b),(band,_) = ax.lines,ax.collections
    assert a.get_ydata().tolist()==pytest.approx([.2,.5]) and b.get_ydata().tolist()==[.2]
    heights = band.get_paths()[0].vertices
    assert {*heights[heights[:,0]==1,1]}=={.1,.3}

@pytest.mark.parametrize('dark', [False, True])
def test_drawings_take_the_style(dark):
    "No white on a dark page"
    with plt.style.context(course_style(dark)):
        ax = draw_flow(['a','b'], [(0,0,'')])
        ink,paper = plt.rcParams['text.color'],plt.rcParams['axes.facecolor']
        assert {o.get_color() for o in ax.texts if o.get_text() in 'ab'}=={ink}
        assert ax.lines[1].get_markerfacecolor()==paper and ax.figure.get_facecolor()==matplotlib.colors.to_rgba(paper)

def test_the_command_draws_in_the_style_and_leaves_none(tmp_path):
    "The curves of a run have the course's colours; matplotlib's settings are then as before"
    before = dict(plt.rcParams)
    rec = dict(model='a', history=[dict(epoch=i, valid_loss=1-i/5, accuracy=i/5) for i in range(5)])
    save_curves([rec], tmp_path/'c.png')
    assert dict(plt.rcParams)==before and not plt.get_fignums()
    seen = {'#%02x%02x%02x'%o[:3] for _,o in Image.open(tmp_path/'c.png').convert('RGB').getcolors(2**16)}
    assert {o.lower() for o in (course_style()['axes.prop_cycle'].by_key()['color'][0], course_style()['text.color'])} <= seen

def test_profiles_have_a_colour_for_loading_and_one_for_the_net():
    "The shares are in the bars, as far as there is room"
    a = pd.Series(dict(zip(('decode','collate','forward','backward','validation'), (2.,.1,3.,4.,.9))))
    with plt.style.context(course_style()):
        plot_profiles(dict(a=a, b=a/100), xlabel='seconds')
        ax = plt.gca()
        hues = [o[0].get_facecolor()[:3] for o in ax.containers]
    assert hues[0]==hues[1] and hues[2]==hues[3] and len({*hues})==3
    assert [o.get_text() for o in ax.texts if o.get_text()]==['20%','30%','40%','9%'] and ax.get_xlabel()=='seconds'
