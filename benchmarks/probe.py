import sys, time, torch
import train
from gorl_robotics.display import Display
from gorl_robotics.config import parse_arguments, resolve
from gorl_robotics import run_folder
from gorl_robotics.refit import refit
from envs.warp_simulation import _Replay
t0=time.time()
c=resolve(parse_arguments(sys.argv[1:]))
tr=train.Trainer(c, run_folder.create(c), Display('probe',1,1))
sync=torch.cuda.synchronize
print("built", time.time()-t0)
def timed(name, fn, n, unit=1):
    for _ in range(3): fn()
    sync(); t=time.time()
    for _ in range(n): fn()
    cpu=time.time()-t; sync(); dt=(time.time()-t)/n
    print(f"{name}: {dt*1e3:.3f} ms (cpu launch {cpu/n*1e3:.3f})", f"{unit/dt/1e6:.3f} M/s" if unit>1 else ""); return dt
N=c.num_envs
act=torch.empty(tr.env.num_worlds,4,device="cuda")
def phys():
    tr.env.apply(act.uniform_(-1,1)); tr.env.physics()
timed("collect identity", tr.collector.collect, 10, N*32)
timed("physics, random controls", phys, 300, N)
sim=tr.env.sim
timed("update", lambda: tr.learner.update(tr.collector.rollout), 5)
d=tr.policy.decoder
torch.nn.init.normal_(d.network[-1].weight, std=.3); torch.nn.init.normal_(d.network[0].bias)
o=torch.randn(4224,15,device="cuda"); z=torch.randn(4224,4,device="cuda")
slow=d(o,z).detach()
with torch.no_grad(): fast=d(o,z)
print("kernel error", (slow-fast).abs().max().item(), "of", slow.abs().max().item(), (slow-z).abs().mean().item())
with torch.no_grad(): timed("decode", lambda: d(o,z), 100)
tr.policy.generative=True; tr.collector.recapture()
timed("collect flow", tr.collector.collect, 10, N*32)
def act_():
    tr.collector._t.zero_(); tr.collector._act()
def fin():
    tr.collector._t.zero_(); tr.collector._finish()
timed("act flow", act_, 200); timed("finish", fin, 200)

import gorl_robotics.flow_kernel as fk
for rows in (16,32,64):
    fk._ROWS=rows
    tr.collector.recapture()
    for _ in range(4): act_()
    timed(f"act flow rows {rows}", act_, 200)
