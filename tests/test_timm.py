"To timm go only the nets that timm has, told by what they compute"
import json, socket
import pytest, timm, torch
from fastai.vision.all import *
from safetensors.torch import save_file
from resnet_course.resblock import ResBlock
from resnet_course.resnet import ResNet, resnet18
from resnet_course.bottleneck import resnet50
from resnet_course.classics import from_timm, timm_name, to_timm
from resnet_course.ingredients import Averaged, kept
from resnet_course.speed import speed_up
from resnet_course.recipe import Recipe, recipe_net
from conftest import one_line, randomise_bn

def timm_net(depth, n_out=10): return timm.create_model(f'resnet{depth}d', num_classes=n_out, pretrained=False)

class OtherBlock(ResBlock):
    "Adds, and lets negative sums through"
    def forward(self, x): return F.leaky_relu(self.branch(x) + self.shortcut(x), .1)

def with_part(name, make, **kwargs):
    net = resnet18(10, **kwargs)
    parent,_,last = name.rpartition('.')
    setattr(net.get_submodule(parent), last, make(net.get_submodule(name)))
    return net

def with_norms(**changes):
    net = resnet18(10)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d): vars(m).update(changes)
    return net

def no_stride(net):
    net.stage2[0].branch[0][0].stride = (1,1); net.stage2[0].branch[0].append(nn.MaxPool2d(2, ceil_mode=True))
    return net

not_timms = dict(max_blur=lambda: recipe_net(Recipe('x', shortcut='max_blur'), 10), pooled=lambda: recipe_net(Recipe('x', down='avg'), 10),
    blurred=lambda: recipe_net(Recipe('x', down='blur'), 10), mish=lambda: recipe_net(Recipe('x', act='Mish'), 10),
    no_pool=lambda: recipe_net(Recipe('x', stem_pool=False), 10), average=lambda: with_part('stem.3', lambda _: nn.AvgPool2d(3, 2, 1)),
    ceil=lambda: with_part('stem.3', lambda _: nn.MaxPool2d(3, 2, ceil_mode=True)), floor=lambda: with_part('stage3.0.shortcut.pool',
    lambda _: nn.AvgPool2d(2)), block=lambda: ResNet(10, [2,2,2,2], OtherBlock), eps=lambda: with_norms(eps=1e-3),
    momentum=lambda: with_norms(momentum=.2), head=lambda: with_part('head.0', lambda _: nn.AdaptiveMaxPool2d(1)),
    strides=lambda: no_stride(resnet18(10)), dilated=lambda: with_part('stage4.1.branch.0.0', lambda c: nn.Conv2d(512, 512, 3, padding=2,
    dilation=2, bias=False)))

@pytest.mark.parametrize('name', not_timms)
def test_to_timm_refuses_what_does_something_else(name):
    "Though timm would load its weights without a word; a fresh net's silent branches do not hide it"
    model = not_timms[name]()
    state,modes = deepcopy(model.state_dict()),[m.training for m in model.modules()]
    timm_net(18, 10).load_state_dict({timm_name(k):o for k,o in model.state_dict().items()})
    rng = torch.get_rng_state()
    with pytest.raises(Exception) as e: to_timm(model)
    assert one_line(e, 'something else', 'timm')
    assert all(torch.equal(o, state[k]) for k,o in model.state_dict().items()) and modes==[m.training for m in model.modules()]
    assert torch.equal(rng, torch.get_rng_state())

@pytest.mark.parametrize('make', [lambda: resnet18(10), lambda: resnet50(10).eval(), lambda: speed_up(resnet18(10)), lambda: resnet18(3, c_in=1),
    lambda: resnet18(10).half(), lambda: recipe_net(Recipe('x'), 10), lambda: with_part('head', lambda h: nn.Sequential(*h[:2], nn.Linear(512, 10)))],
    ids=['18','50','fast','grey','half','recipe','head'])
def test_to_timm_takes_what_does_the_same(make):
    model = make()
    weights = to_timm(model)
    c_in,n_out = weights['conv1.0.weight'].shape[1],len(weights['fc.bias'])
    ref = timm.create_model('resnet50d' if 'layer1.0.conv3.weight' in weights else 'resnet18d', in_chans=c_in, num_classes=n_out)
    ref.load_state_dict(weights)
    x = torch.randn(2, c_in, 65, 49)
    with torch.no_grad(): torch.testing.assert_close(model.float().eval()(x), ref.eval()(x), rtol=1e-4, atol=1e-4)

def test_from_timm_of_other_channels(tmp_path):
    ref = randomise_bn(timm.create_model('resnet18d', in_chans=1, num_classes=4)).eval()
    save_file(ref.state_dict(), tmp_path/'grey.safetensors')
    x = torch.randn(2,1,65,49)
    torch.testing.assert_close(from_timm(tmp_path/'grey.safetensors').eval()(x), ref(x))

@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    "A folder with timm's weights, and what writes the config.json beside them"
    folder = tmp_path_factory.mktemp('timm')
    save_file(timm_net(18).state_dict(), folder/'model.safetensors')
    def with_config(text):
        (folder/'config.json').write_bytes(text if isinstance(text, bytes) else json.dumps(text).encode())
        return folder/'model.safetensors'
    return with_config

@pytest.mark.parametrize('config', [{}, dict(architecture='resnet18d'), dict(architecture='resnet18d.ra2_in1k', global_pool='avg'),
    dict(architecture='resnet18d', global_pool='avg', model_args=dict(num_classes=10, in_chans=3, drop_rate=.5, drop_path_rate=.1,
    global_pool='avg', act_layer='relu', output_stride=32)), dict(model_args=None)], ids=str)
def test_from_timm_takes_a_net_as_it_is_by_default(saved, config): assert from_timm(saved(config)).head[-1].out_features==10

@pytest.mark.parametrize('config, words', [(dict(model_args=dict(act_layer='silu')), ['act_layer',"'silu'"]),
    (dict(model_args=dict(output_stride=8)), ['output_stride=8']), (dict(global_pool='max'), ["global_pool='max'"]),
    (dict(global_pool='catavgmax'), ['global_pool']), (dict(model_args=dict(global_pool='max')), ['global_pool']),
    (dict(model_args=dict(block_args=dict(attn_layer='se'))), ['block_args']), (dict(model_args=dict(aa_layer='avg')), ['aa_layer']),
    (dict(architecture='resnetaa18d'), ['resnetaa18d']), (dict(architecture='resnetblur18'), ['resnetblur18','config.json']),
    (dict(architecture=5), ['config.json']), ([], ['config.json']),
    (b'\xff\xfe', ['config.json']), (dict(model_args=[1]), ['config.json'])], ids=str)
def test_from_timm_reads_all_of_the_config(saved, config, words):
    "timm keeps one beside its weights; names and shapes alone do not tell resnetaa18d from resnet18d"
    with pytest.raises(Exception) as e: from_timm(saved(config))
    assert one_line(e, 'model.safetensors', *words) and 'delete' not in str(e.value)

@pytest.mark.parametrize('n_out', [0, -1, 2.5, '3', True, []], ids=str)
def test_no_number_of_classes(saved, n_out):
    with pytest.raises(Exception) as e: from_timm(saved({}), n_out)
    assert one_line(e, f'n_out {n_out!r}', '1 or more')

def test_no_such_weights():
    with pytest.raises(Exception) as e: from_timm('nowhere/a.safetensors')
    assert one_line(e, 'nowhere/a.safetensors: no such file')

@pytest.mark.parametrize('model, words', [(resnet18, ['a net']), (None, ['a net']), ({}, ['a net'])])
def test_to_timm_takes_nets(model, words):
    with pytest.raises(Exception) as e: to_timm(model)
    assert one_line(e, *words)

def test_to_timm_of_an_average():
    net = Averaged(resnet18(10), .9)
    with pytest.raises(Exception) as e: to_timm(net)
    assert one_line(e, 'kept(model)') and to_timm(kept(net)).keys()==to_timm(net.net).keys()

# --- the lesson's last cells ------------------------------------------------------------------------------------------
@pytest.mark.parametrize('network, words', [(True,'daisy 100%'), (False,'There is no network here'), ('down','need `pip install timm` and a network')])
def test_real_photos(network, words, monkeypatch, capsys):
    "With a network they are named by timm's weights, in the course's net; without one a line says so, and nothing fails"
    cells = json.loads((Path(__file__).parent.parent/'nbs'/'08_classics.ipynb').read_text(encoding='utf-8'))['cells']
    made = timm.create_model
    def create_model(name, pretrained=False):
        if pretrained and network=='down': raise OSError('gone')
        net = made(name)
        if pretrained: net.fc.bias.data[985] = 1e4
        return net
    def create_connection(*_):
        if not network: raise OSError
        return open(os.devnull)
    monkeypatch.setattr(timm, 'create_model', create_model)
    monkeypatch.setattr(socket, 'create_connection', create_connection)
    monkeypatch.delenv('RESNET_COURSE_WEIGHTS', raising=False)
    scope = dict(display=print, socket=socket)
    exec('from fastai.vision.all import *\nfrom resnet_course.classics import *\nfrom resnet_course.kit.photos import Photo\n'
         'from resnet_course.kit.files import CourseError', scope)
    start, = [i for i,c in enumerate(cells) if 'def top5(' in ''.join(c['source'])]
    for c in cells[start:start+3]: exec(''.join(c['source']), scope)
    said = capsys.readouterr().out
    assert words in said and (said.count('daisy')==2) is (network is True)
