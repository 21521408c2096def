"""PPO (Schulman et al. 2017): one update loop for every method."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from gorl_robotics import distributed
from gorl_robotics.adam import Adam
from gorl_robotics.advantages import advantages
from gorl_robotics.beside import Beside
from gorl_robotics.config import Config
from gorl_robotics.graphs import captured
from gorl_robotics.later import Later
from gorl_robotics.losses import value_gradients
from gorl_robotics.networks import Normaliser, clip_gradients, fits_critic_kernel, mlp
from gorl_robotics.novelty import Novelty
from gorl_robotics.policy import Policy
from gorl_robotics.rollout import Rollout

_LOWEST_RATE = 1e-5
_RATE_CHANGE = 1.5
_ENTROPY_CHANGE = 1.005
_MOST_ENTROPY = 10  # times the least
_FEW_ACTUATORS = 4
_NEWEST = 0.1  # share of the newest rollout in the running mean of what is earned
POLICY_METRICS = ("loss/policy", "policy/kl", "policy/clipped", "policy/entropy", "policy/std")  # as in PolicyLoss
METRICS = (*POLICY_METRICS, "loss/value")


class Learner:
    """Improves a policy and its critic from rollouts.

    Args:
        policy: of any method.
        critic_observation_size: width of what the critic sees.
        config: settings.
        samples: environment steps of a rollout, T·N.
        device: where everything lives.
        generator: shuffles the minibatches.

    Attributes:
        earned: running mean of the reward of a control step, over the last ten rollouts or so, a scalar tensor.
    """

    def __init__(
        self,
        policy: Policy,
        critic_observation_size: int,
        config: Config,
        samples: int,
        device: torch.device,
        generator: torch.Generator,
    ) -> None:
        self.policy, self.config = policy, config.ppo
        self.critic = mlp(critic_observation_size, config.networks.critic, 1).to(device)
        self.critic_normaliser = Normaliser(critic_observation_size).to(device)
        self._generator = generator
        cuda = device.type == "cuda"
        rate = torch.tensor(config.ppo.learning_rate, device=device)
        self.policy_optimizer = Adam(policy.trained.parameters(), rate)
        self._highest_rate = rate.clone()  # read by a captured graph
        self.critic_optimizer = Adam(self.critic.parameters(), config.ppo.learning_rate)
        # Of so many joints nothing but ±1 would come if each had as wide a σ as four have.
        first = config.stages.first_regularisation * max(_FEW_ACTUATORS, policy.noise_size) / _FEW_ACTUATORS
        self.regularisation = torch.tensor([config.ppo.entropy, first, first], device=device)  # see `policy_loss`
        self.earned = torch.zeros((), device=device)
        self._allocate(samples, device)
        self.novelty = Novelty(critic_observation_size, samples, device, generator) if config.ppo.novelty else None
        # Both halves call collectives, which several processes must do in one order: on a CPU that takes one thread.
        self._beside = Beside(device, config.threads if cuda or distributed.size() == 1 else 1)
        self._rollout: Rollout | None = None
        # All minibatches are one graph each: several processes' collectives in many small ones hold up the host.
        acting, judging = (partial(self._each_minibatch, each) for each in (self._improve_policy, self._improve_critic))
        # A GPU waits for the policy, two cores for both, of which the critic takes longer.
        self._policy_minibatches = captured(acting if cuda else partial(self._after_novelty, acting), device)
        self._critic_minibatches = captured(partial(self._after_novelty, judging) if cuda else judging, device)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Those of METRICS that there are with this policy."""
        return (*POLICY_METRICS[: self.policy.num_metrics], METRICS[-1])

    @property
    def networks(self) -> list[nn.Module]:
        """What it has beside the policy, to be the same in every process."""
        return [self.critic] if self.novelty is None else [self.critic, self.novelty]

    @property
    def policy_rate(self) -> Tensor:
        """The policy's present learning rate, a scalar tensor that is changed in place."""
        assert isinstance(self.policy_optimizer.rate, Tensor)
        return self.policy_optimizer.rate

    def update(self, rollout: Rollout) -> None:
        """One PPO update from a rollout, with statistics of observations that do not know it yet.

        Policy and critic share nothing. On a GPU the critic is not waited for: it learns while the next rollout is
        collected, which needs the policy alone.
        """
        self._beside.join()
        if rollout is not self._rollout:
            self._rollout = rollout
            prepare = partial(self._prepare_minibatches, rollout)
            self._prepare = captured(prepare, self._order.device, [self._generator])
        self._prepare()
        self._beside(self._policy_minibatches, self._critic_minibatches)

    def parts(self) -> list[Callable[[], object]]:
        """Acting, and what of an update changes nothing but gradients, whatever is in its buffers; for `compiling`."""

        def adapt() -> None:
            kept = (self._policy_sums, self._policy_turn, self.policy_rate, self.regularisation)
            self._adapt_at_once(torch.zeros_like(self._policy_sums), *(tensor.clone() for tensor in kept))

        def policy() -> None:
            self.policy.gradients(self._buffers(), self._order[0], self.config, self.regularisation)
            clip_gradients(self.policy.trained, self.config.max_grad_norm)

        def critic() -> None:
            value_gradients(self.critic, self._critic_observation, self._target, self._order[0])
            clip_gradients(self.critic, self.config.max_grad_norm)

        @torch.no_grad()
        def value(some: bool) -> None:
            seen = self._critic_observation.unsqueeze(0)
            self._values(seen, torch.zeros_like(seen[..., 0], dtype=torch.bool) if some else None)

        def act() -> None:
            # Triton compiles anew for numbers that are no multiple of 16.
            worlds = len(self._observation) // self.config.rollout_steps
            seen = self._observation[: max(16, worlds // 16 * 16)]
            self.policy.act(seen, seen.new_zeros(len(seen), self.policy.noise_size))

        first = [adapt] if self._order.is_cuda else []  # the least of all: see `compiling`
        values = [partial(value, some) for some in (False, True)]
        return [*first, policy, critic, act, *values, *([] if self.novelty is None else self.novelty.parts())]

    def wait(self) -> None:
        """What is launched from now on waits for the critic."""
        self._beside.join()

    def metrics(self) -> Tensor:
        """Means over the last update's minibatches in this process, named by `metric_names`; still on the device."""
        self._beside.join()
        return self._means()

    def metrics_later(self, *others: Tensor) -> Later:
        """The values of `others`, (n,) or (), and then `metrics`, without making any work wait for the critic.

        The others must be nobody else's: they are come to later.
        """
        with self._beside.behind():
            return Later.of(*others, self._means())

    def bound_rate(self, share: float) -> None:
        """From now on the policy's rate is at most this share of `learning_rate`, or the lowest there is."""
        highest = self.config.learning_rate
        self._highest_rate.fill_(min(highest, max(_LOWEST_RATE, share * highest)))

    def restart_policy(self, pull: float) -> None:
        """The policy back to z ~ N(0, I) with fresh optimiser state; critic and statistics are kept.

        From now on σ is pulled by `pull`; μ as it was, since one that is held back may stand still where it must not.
        """
        self.policy.restart()
        self.policy_optimizer.reset()
        self.policy_rate.fill_(self.config.learning_rate)
        self.regularisation[0], self.regularisation[2] = self.config.entropy, pull

    def state_dict(self) -> dict[str, object]:
        """Everything but the policy's own weights."""
        self._beside.join()
        return {
            "critic": self.critic.state_dict(),
            "critic_normaliser": self.critic_normaliser.state_dict(),
            "policy_optimizer": self.policy_optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "regularisation": self.regularisation,
            "earned": self.earned,
            **({} if self.novelty is None else {"novelty": self.novelty.saved()}),
        }

    def load_state_dict(self, saved: dict[str, object]) -> None:
        """Restores `state_dict`."""
        for name in ("critic", "critic_normaliser", "policy_optimizer", "critic_optimizer"):
            getattr(self, name).load_state_dict(saved[name])
        weights = saved["regularisation"]
        assert isinstance(weights, Tensor)
        if weights.dim():
            self.regularisation[: len(weights)] = weights
            self.regularisation[2] = weights[-1]  # formerly the same as on μ, and saved once
        else:  # formerly of a mean over actuators, with an entropy whose weight did not change
            self.regularisation[1:] = weights / self.policy.noise_size
        if "earned" in saved:
            self.earned.copy_(saved["earned"])  # type: ignore[arg-type]
        if self.novelty is not None and "novelty" in saved:
            self.novelty.restore(saved["novelty"])  # type: ignore[arg-type]

    def _prepare_minibatches(self, rollout: Rollout) -> None:
        """All that comes before the first minibatch, the statistics that the next rollout is seen with included."""
        self._load(rollout)
        self.earned.lerp_(rollout.reward.mean(), _NEWEST)
        self._policy_sums.zero_()
        self._value_sum.zero_()
        for order in self._order.view(self.config.epochs, -1):
            order.copy_(torch.randperm(len(order), device=order.device, generator=self._generator))
        self._policy_turn.zero_()
        self._critic_turn.zero_()
        if self.novelty is not None:
            self.novelty.draw()
        self.policy.normaliser.update(rollout.observation)
        self.critic_normaliser.update(rollout.critic_observation)

    @torch.no_grad()
    def _load(self, rollout: Rollout) -> None:
        """Advantages and value targets, and everything a minibatch gathers from, in fixed buffers."""
        value = self._values(rollout.critic_observation)
        advantage = advantages(
            self._paid(rollout) * self.config.reward_scale,
            value,
            self._next_values(rollout, value),
            rollout.terminated,
            rollout.truncated,
            self.config.discount,
            self.config.gae_lambda,
        )
        self._target.copy_((advantage + value).flatten())
        mean, std = distributed.mean_std(advantage)
        self._advantage.copy_(((advantage - mean) / (std + 1e-8)).flatten())
        self._observation.copy_(self.policy.normaliser(rollout.observation).flatten(0, 1))
        self._critic_observation.copy_(self.critic_normaliser(rollout.critic_observation).flatten(0, 1))
        for name, buffer in self._read.items():
            buffer.copy_(rollout.read(name).flatten(0, 1))

    def _paid(self, rollout: Rollout) -> Tensor:
        """What is learnt from as rewards, (T, N): the task's, and the bonus for where its steps led."""
        if self.novelty is None:
            return rollout.reward
        led_to = self.critic_normaliser(rollout.terminal_critic_observation)
        return rollout.reward + self.config.novelty * self.novelty.bonus(led_to)

    def _values(self, observation: Tensor, asked: Tensor | None = None) -> Tensor:
        """The critic's values (T, N); those that are not `asked` for, (T, N), bool, may be anything."""
        seen = self.critic_normaliser(observation)
        if fits_critic_kernel(self.critic):
            from gorl_robotics.value_kernel import values

            return values(self.critic, seen.flatten(0, 1), None if asked is None else asked.flatten()).view_as(
                seen[..., 0]
            )
        if asked is None or seen.is_cuda:
            return self.critic(seen).squeeze(-1)
        there = torch.zeros_like(seen[..., 0])
        there[asked] = self.critic(seen[asked]).squeeze(-1)
        return there

    def _next_values(self, rollout: Rollout, value: Tensor) -> Tensor:
        """Values of what each step led to, (T, N): where the episode goes on, that of the next step's observation."""
        ends = rollout.terminated | rollout.truncated
        ends[-1] = True
        there = self._values(rollout.terminal_critic_observation, ends)
        return torch.where(ends, there, value.roll(-1, 0))

    def _means(self) -> Tensor:
        return torch.cat([self._policy_sums, self._value_sum]) / (self.config.epochs * self.config.minibatches)

    def _each_minibatch(self, improve: Callable[[], None]) -> None:
        for _ in range(self.config.epochs * self.config.minibatches):
            improve()

    def _after_novelty(self, improve: Callable[[], None]) -> None:
        if self.novelty is not None:
            self.novelty.learn()
        improve()

    def _buffers(self) -> dict[str, Tensor]:
        return {**self._read, "observation": self._observation, "advantage": self._advantage}

    def _improve_policy(self) -> None:
        rows = self._order.index_select(0, self._policy_turn).squeeze(0)
        terms = self.policy.gradients(self._buffers(), rows, self.config, self.regularisation)
        distributed.average_gradients(self.policy.trained, *(term for term in terms if term is not None))
        self._descend(self.policy.trained, self.policy_optimizer)
        self._adapt(torch.stack([term for term in terms if term is not None]))

    def _improve_critic(self) -> None:
        rows = self._order.index_select(0, self._critic_turn).squeeze(0)
        value_loss = value_gradients(self.critic, self._critic_observation, self._target, rows)
        distributed.average_gradients(self.critic)
        self._descend(self.critic, self.critic_optimizer)
        self._value_sum.add_(value_loss)
        self._critic_turn.add_(1)

    def _descend(self, network: nn.Module, optimizer: Adam) -> None:
        """A step along the gradients that were left with the network's parameters."""
        clip_gradients(network, self.config.max_grad_norm)
        optimizer.step()

    def _adapt(self, terms: Tensor) -> None:
        """Counts a minibatch of the policy and its terms, and adapts its rate and the entropy's weight to them."""
        if terms.is_cuda:
            self._adapt_at_once(terms, self._policy_sums, self._policy_turn, self.policy_rate, self.regularisation)
            return
        self._adapt_rate(terms[1])
        if len(terms) == len(POLICY_METRICS):
            self._adapt_entropy(terms[4])
        self._policy_sums.add_(terms)
        self._policy_turn.add_(1)

    def _adapt_at_once(self, terms: Tensor, sums: Tensor, turn: Tensor, rate: Tensor, weights: Tensor) -> None:
        """The same in one kernel, and to what is given."""
        from gorl_robotics.adapt_kernel import adapt

        config, least = self.config, self.config.entropy
        rate_is = (config.target_kl, _RATE_CHANGE, _LOWEST_RATE, self._highest_rate)
        weight_is = (config.least_std, _ENTROPY_CHANGE, least, _MOST_ENTROPY * least)
        adapt(terms, sums, turn, rate, weights, rate_is, weight_is)

    def _adapt_rate(self, kl: Tensor) -> None:
        """Divides the policy's rate by 1.5 where the step was too long, multiplies it where it was too short."""
        rate, target = self.policy_rate, self.config.target_kl
        factor = torch.where(kl > 2 * target, 1 / _RATE_CHANGE, torch.where(kl < target / 2, _RATE_CHANGE, 1.0))
        rate.copy_(torch.minimum((rate * factor).clamp(min=_LOWEST_RATE), self._highest_rate))

    def _adapt_entropy(self, std: Tensor) -> None:
        """The entropy's weight grows while σ is too small on the mean over states, and else goes back."""
        least, weight = self.config.entropy, self.regularisation[:1]
        factor = torch.where(std < self.config.least_std, _ENTROPY_CHANGE, 1 / _ENTROPY_CHANGE)
        weight.mul_(factor).clamp_(least, _MOST_ENTROPY * least)

    def _allocate(self, samples: int, device: torch.device) -> None:
        def zeros(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(*size, dtype=dtype, device=device)

        epochs, minibatches = self.config.epochs, self.config.minibatches
        self._observation = zeros(samples, self.policy.normaliser.mean.shape[0])
        self._critic_observation = zeros(samples, self.critic_normaliser.mean.shape[0])
        self._advantage, self._target = zeros(samples), zeros(samples)
        self._read = {name: zeros(samples, *size) for name, size in self.policy.reads.items()}
        self._order = zeros(epochs * minibatches, samples // minibatches, dtype=torch.int64)
        self._policy_turn, self._critic_turn = (zeros(1, dtype=torch.int64) for _ in range(2))  # rows of `_order`
        self._policy_sums, self._value_sum = zeros(len(self.metric_names) - 1), zeros(1)
