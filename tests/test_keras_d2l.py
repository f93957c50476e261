"Keras' ResNet-50 computes what Keras does, layer by layer; it and d2l's ResNet-18 fold into torchvision's nets"
import os
os.environ |= dict(KERAS_BACKEND='torch', KERAS_HOME=os.environ['FASTAI_HOME'])   # Keras reads them when imported
import keras, numpy as np, pytest, torch, torchvision
from functools import lru_cache
from fastai.vision.all import *
from keras import layers as kl
from dataclasses import replace
from resnet_course.d2l import d2l_resnet18, fashion_dls, fashion_experiment, fashion_schedule_experiment, Residual, resnet_block
from resnet_course.keras_net import convolutional_block, identity_block, keras_resnet50, signs_experiment
from conftest import norms, one_line, randomise_bn

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

def randomise(model):
    "Batch norms and biases as after training"
    for m in model.modules():
        if isinstance(m, (nn.Conv2d,nn.Linear)) and m.bias is not None: m.bias.data.uniform_(-.3, .3)
    return randomise_bn(model).eval()

def close(a, b, tol): return a.shape==b.shape and (a-b).abs().max() < tol*b.abs().max()
def convs(net): return [m for m in net.modules() if isinstance(m, nn.Conv2d)]
# --- Keras itself -----------------------------------------------------------------------------------------------
stages = {2:(64,'abc',1), 3:(128,'abcd',2), 4:(256,'abcdef',2), 5:(512,'abc',2)}

@lru_cache
def reference(h, w):
    "The ResNet50 of the text for six classes, without its softmax, built by Keras"
    def block(x, name, nf, stride, project):
        y = x
        for part,width,ks,step in (('2a',nf,1,stride), ('2b',nf,3,1), ('2c',4*nf,1,1)):
            y = kl.Conv2D(width, ks, strides=step, padding='same' if ks>1 else 'valid',
                          name=f'res{name}_branch{part}')(y)
            y = kl.BatchNormalization(name=f'bn{name}_branch{part}')(y)
            if part!='2c': y = kl.ReLU()(y)
        if project:
            x = kl.Conv2D(4*nf, 1, strides=stride, name=f'res{name}_branch1')(x)
            x = kl.BatchNormalization(name=f'bn{name}_branch1')(x)
        return kl.ReLU()(kl.Add()([y,x]))
    inp = kl.Input((h,w,3))
    x = kl.Conv2D(64, 7, strides=2, name='conv1')(kl.ZeroPadding2D(3)(inp))
    x = kl.MaxPooling2D(3, strides=2)(kl.ReLU()(kl.BatchNormalization(name='bn_conv1')(x)))
    for n,(nf,blocks,stride) in stages.items():
        for c in blocks: x = block(x, f'{n}{c}', nf, stride if c=='a' else 1, c=='a')
    x = kl.AveragePooling2D(2, padding='same', name='avg_pool')(x)
    return keras.Model(inp, kl.Dense(6, name='fc6')(kl.Flatten()(x)))

def named(net): return {k.split('.')[-1]:m for k,m in net.named_modules()}

def copy_by_name(ref, net):
    "Give each layer of Keras' `ref` the weights of the module of `net` that has its name"
    mods = named(net)
    layers = [l for l in ref.layers if l.weights]
    for l in layers:
        m = mods[l.name]
        if isinstance(m, nn.BatchNorm2d): ws = [m.weight, m.bias, m.running_mean, m.running_var]
        elif isinstance(m, nn.Conv2d):    ws = [m.weight.permute(2,3,1,0), m.bias]
        else:   # Keras flattens (h, w, c), torch (c, h, w)
            h,w,c = ref.get_layer('avg_pool').output.shape[1:]
            ws = [m.weight.view(-1,c,h,w).permute(2,3,1,0).flatten(0,2), m.bias]
        l.set_weights([o.detach().numpy() for o in ws])
    assert {mods[l.name] for l in layers}=={m for m in net.modules() if m._parameters}

@pytest.mark.parametrize('h, w', [(64,64), (96,75)])   # the second has 3x3 cells before the average pool
def test_equals_keras_layer_by_layer(h, w):
    net,ref = randomise(keras_resnet50(6, (h,w))),reference(h, w)
    copy_by_name(ref, net)
    names = [l.name for l in ref.layers if l.weights or l.name=='avg_pool']
    assert len(names)==53+53+2
    x,outs,mods = torch.rand(2,3,h,w),{},named(net)
    for o in names: mods[o].register_forward_hook(lambda m, inp, out, o=o: outs.update({o:out}))
    with torch.no_grad():
        net(x)
        expected = keras.Model(ref.inputs, [ref.get_layer(o).output for o in names])(x.permute(0,2,3,1), training=False)
    # Keras computes batch norm in float32, whatever the inputs: no tighter than this
    differ = [o for o,e in zip(names, expected, strict=True)
              if not close(outs[o], e.movedim(-1,1) if e.ndim==4 else e, 1e-5)]
    assert not differ, f'the first of {len(differ)} layers that differ: {differ[0]}'

def test_keras_counts_the_same_parameters():
    ref,net = reference(64, 64),keras_resnet50()
    for weights,ours in ((ref.trainable_weights, net.parameters()),
                         (ref.non_trainable_weights, [t for m in norms(net) for t in (m.running_mean, m.running_var)])):
        assert sum(w.numpy().size for w in weights)==sum(p.numel() for p in ours)

def test_the_net_of_keras_applications_is_a_relative():
    ref = keras.applications.ResNet50(weights=None)
    with torch.device('meta'): net = keras_resnet50(1000)
    assert ref.count_params()==25_636_712==sum(p.numel() for p in net.parameters())+53_120
    assert ref.get_layer('conv1_bn').epsilon==pytest.approx(1.001e-5)
    assert ref.get_layer('pool1_pad').padding==((1,1),(1,1))
    assert isinstance(ref.get_layer('avg_pool'), kl.GlobalAveragePooling2D)

def test_batch_norm_has_keras_settings():
    "The same moving mean after a training step; of the variance Keras takes the biased estimate, torch the unbiased"
    bn,ref = keras_resnet50().bn_conv1.train(),kl.BatchNormalization()
    assert (bn.eps, bn.momentum)==(ref.epsilon, pytest.approx(1-ref.momentum))
    x = torch.randn(4,64,3,3)+1
    y = ref(x.permute(0,2,3,1), training=True)
    assert close(bn(x), y.permute(0,3,1,2), 1e-5)
    assert np.allclose(bn.running_mean, ref.moving_mean.numpy(), atol=1e-6)
    assert np.allclose((bn.running_var-.99)*35/36, ref.moving_variance.numpy()-.99, atol=1e-6)
    assert {(m.eps, m.momentum) for m in norms(keras_resnet50())}=={(bn.eps, bn.momentum)}

@pytest.mark.parametrize('ks', [2,3,4])
def test_the_middle_convolution_pads_as_keras_does(ks):
    conv,ref = identity_block(8, (4,4,8), ks).branch.res_branch2b,kl.Conv2D(4, ks, padding='same')
    x = torch.randn(2,4,7,6)
    ref.build((None,7,6,4))
    ref.set_weights([conv.weight.detach().permute(2,3,1,0).numpy(), conv.bias.detach().numpy()])
    assert close(conv(x), ref(x.permute(0,2,3,1)).permute(0,3,1,2), 1e-5)

def test_one_seed_for_all_layers_starts_them_alike():
    "What the lesson says of the text's `glorot_uniform(seed=0)`; ours start apart"
    a,b = [kl.Conv2D(4, 3, kernel_initializer=keras.initializers.GlorotUniform(seed=0)) for _ in range(2)]
    for o in (a,b): o.build((None,8,8,4))
    assert (a.kernel.numpy()==b.kernel.numpy()).all()
    stage = keras_resnet50().stage2
    assert (stage.b.branch.res2b_branch2b.weight!=stage.c.branch.res2c_branch2b.weight).any()

# --- folded into torchvision's nets -----------------------------------------------------------------------------
def fold(ref, net):
    """Give torchvision's `ref` the weights of `net`. A convolution's bias moves into the mean that its batch norm
    subtracts; a convolution without a batch norm gets one that does nothing but add the bias"""
    ours = [m for m in net.modules() if isinstance(m, (nn.Conv2d,nn.BatchNorm2d))]
    ours = [(m, n if isinstance(n, nn.BatchNorm2d) else None)
            for m,n in zip(ours, [*ours[1:],None]) if isinstance(m, nn.Conv2d)]
    for conv,bn,(c,n) in zip(convs(ref), norms(ref), ours, strict=True):
        conv.load_state_dict({'weight':c.weight})
        if n is not None:
            bn.load_state_dict(n.state_dict())
            bn.running_mean -= c.bias
        else:
            bn.load_state_dict(dict(weight=torch.ones_like(c.bias), bias=c.bias, running_mean=torch.zeros_like(c.bias),
                running_var=torch.full_like(c.bias, 1-bn.eps), num_batches_tracked=tensor(0)))
    return ref.eval()

@torch.no_grad()
def test_d2l_folds_into_torchvision():
    net = randomise(d2l_resnet18(3)).double()
    ref = fold(torchvision.models.resnet18(num_classes=10).double(), net)
    ref.fc.load_state_dict(net.head[-1].state_dict())
    for size in ((128,128), (131,97)):
        x = torch.randn(2,3,*size, dtype=torch.float64)
        assert close(net(x), ref(x), 1e-12)

@pytest.mark.parametrize('h, w', [(64,64), (131,97)])
@torch.no_grad()
def test_keras_folds_into_torchvision(h, w):
    net = randomise(keras_resnet50(6, (h,w))).double()
    ref = torchvision.models.resnet50(num_classes=6, norm_layer=partial(nn.BatchNorm2d, eps=1e-3)).double()
    for m in ref.modules():
        if isinstance(m, torchvision.models.resnet.Bottleneck):
            m.conv1.stride,m.conv2.stride = m.conv2.stride,m.conv1.stride
    ref.maxpool = nn.MaxPool2d(3, stride=2)
    fold(ref, net)
    if (h,w)==(64,64): ref.fc.load_state_dict(net.fc6.state_dict())   # torchvision pools globally: the same at 64 px
    else: ref.avgpool,ref.fc = nn.AvgPool2d(2, ceil_mode=True),net.fc6
    x = torch.randn(2,3,h,w, dtype=torch.float64)
    assert close(net(x), ref(x), 1e-12)

# --- counts, shapes, names --------------------------------------------------------------------------------------
def test_d2l_any_size():
    net = d2l_resnet18(2, 7).eval()
    for size in ((1,1), (33,20)): assert net(torch.randn(2,2,*size)).shape==(2,7)
    for args,out in (((4,4), (4,9,10)), ((4,4,True), (4,9,10)), ((4,6,True,2), (6,5,5)), ((4,4,True,3), (4,3,4))):
        assert Residual(*args)(torch.randn(2,4,9,10)).shape==(2,*out)

def test_keras_sizes():
    "The linear layer fits what the grid is down to, from 5 pixels on"
    for size in (5, 6, 37, 75, 96, 224, (64,131), (35,34)):
        with torch.device('meta'):
            net = keras_resnet50(3, size).eval()
            assert net(torch.zeros(1, 3, *((size,size) if isinstance(size,int) else size))).shape==(1,3)
    assert keras_resnet50(4).fc4.in_features==2048

def test_keras_names():
    names = set(named(keras_resnet50(10)))
    branches = ['1','2a','2b','2c']
    expected = {f'{kind}{n}{c}_branch{b}' for n,(_,blocks,_) in stages.items() for c in blocks
                for b in branches[c!='a':] for kind in ('res','bn')}
    assert len(expected)==2*52 and expected | {'conv1','bn_conv1','avg_pool','fc10'} <= names
    assert {'res7x_branch1','bn7x_branch2c'} <= set(named(convolutional_block(8, (4,4,16), name='7x')))

def test_stride_is_in_the_first_convolution():
    blk = convolutional_block(8, (4,4,16), 3, 5)
    assert [(m.stride[0],m.kernel_size[0]) for m in convs(blk)]==[(3,1), (1,5), (1,1), (3,1)]
    assert blk(torch.randn(2,8,10,7)).shape==(2,16,4,3)
    assert [(m.stride[0],m.kernel_size[0]) for m in convs(identity_block(8, (4,4,8), 5))]==[(1,1), (1,5), (1,1)]

@pytest.mark.parametrize('net, biases', [(d2l_resnet18, False), (keras_resnet50, True)])
def test_xavier_init(net, biases):
    "Uniform up to the square root of 6/(fan in + fan out); Keras' biases 0"
    for m in net().modules():
        if not isinstance(m, (nn.Conv2d,nn.Linear)): continue
        w = m.weight.detach()
        bound = (6/((w.shape[0]+w.shape[1])*w[0,0].numel()))**.5
        assert .98*bound < w.abs().max() <= bound and w.std().item()==pytest.approx(bound/3**.5, rel=.05)
        assert (m.bias==0).all()==biases

def test_errors():
    for ci,co,s in ((3,6,1), (3,3,2)):
        with pytest.raises(Exception) as e: Residual(ci, co, strides=s)
        assert one_line(e, f'Residual({ci}, {co}, strides={s})', 'use_1x1conv=True')
    with pytest.raises(Exception) as e: resnet_block(64, 128, 2, first_block=True)
    assert one_line(e, 64, 128, 'first_block')
    with pytest.raises(Exception) as e: identity_block(64, (64,64,256))
    assert one_line(e, 64, 256, 'convolutional_block')
    for size in (4, (64,4)):
        with pytest.raises(Exception) as e: keras_resnet50(6, size)
        assert one_line(e, '4', '5 or more')

# --- the lessons' experiments -----------------------------------------------------------------------------------------
@pytest.mark.parametrize('exp, size', [(fashion_experiment,96), (fashion_schedule_experiment,96), (signs_experiment,64)], ids=lambda o: getattr(o, 'name', ''))
def test_experiments_run(exp, size, drawn):
    "One epoch, on a few drawn pictures, is recorded as what it is"
    from resnet_course.data import get_data
    def loaders(_): return fashion_dls(drawn, bs=16) if size==96 else get_data(drawn, presize=64, resize=64, bs=16)
    for model in exp.nets:
        record = replace(exp, loaders=loaders, data=str(drawn), epochs=1).run(model)
        made = total_params(exp.nets[model](10))[0]
        assert (record['params'], record['complete'], record['size'], record['recipe'], len(record['history']))==(made, True, size, exp.recipe, 1)
