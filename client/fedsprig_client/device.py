"""The device: answers the server's messages from its own pictures and store.

Every answer depends only on the request, the device's file and what the store holds, never on what
this process did before: Flower may start a new process for each message, and a request that is sent
twice gets the same answer twice.
"""

from __future__ import annotations

import hmac
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedsprig.adapters import adapter_state, is_statistic, load_adapter_state
from fedsprig.artifacts import pack
from fedsprig.artifacts.digest import digest, state_digest
from fedsprig.bases import BaseWeights
from fedsprig.errors import (
    FedsprigError,
    MessageError,
    MissingNetworkError,
    MissingPartError,
    StaleUpdateError,
)
from fedsprig.graph import shrink_plan
from fedsprig.models import ModelCard
from fedsprig.narrowing import narrow_package
from fedsprig.pruning.aap.attention import attention_sums
from fedsprig.scoring import score
from fedsprig.seeds import derive_seed
from fedsprig.spelling import lookup
from fedsprig.subnetwork import SubNetwork, build_subnetwork
from fedsprig.tasks import Evidence, Features, class_means, observe, projected_variance
from fedsprig.tasks.similarity import HEAD_VALUES, head_values
from fedsprig.tasks.similarity.packed_heads import unpack_heads
from fedsprig.training import (
    ImageSet,
    evaluate,
    features,
    fit,
    hold_out,
    labelled_batches,
    read,
    recalibrate,
    require_classes,
    to_tensor,
)
from fedsprig.updates import decode_state, encode_state, encode_update
from fedsprig.wire import (
    ATTENTION,
    COMPARE,
    CUT,
    DESCRIBE,
    EVALUATE,
    INSTALL,
    PROFILE,
    ROUND,
    Envelope,
    parse,
)
from fedsprig.wire import device_pb2 as pb
from fedsprig.wire.budgets import to_wire
from fedsprig_client.config import DeviceConfig
from fedsprig_client.store import DeviceStore
from fedsprig_client.travelling import (
    hold,
    measures,
    train_config,
    travelling,
    travelling_statistics,
)

log = logging.getLogger(__name__)
HELD_OUT = 0.2
SCORING_BATCH = 32


class Device:
    """One device; :meth:`answer` is its whole interface."""

    def __init__(self, config: DeviceConfig) -> None:
        self.config = config
        self.store = DeviceStore(config.store)
        self._answers: Mapping[str, Callable[[Envelope], Envelope]] = {
            PROFILE: self._profile,
            DESCRIBE: self._describe,
            COMPARE: self._compare,
            INSTALL: self._install,
            ROUND: self._round,
            ATTENTION: self._attention,
            CUT: self._cut,
            EVALUATE: self._evaluate,
        }

    @classmethod
    def open(cls, path: Path) -> Device:
        """The device of a file; see :mod:`fedsprig_client.config`."""
        return cls(DeviceConfig.load(path))

    def answer(self, request: Envelope) -> Envelope:
        """Answer one message.

        Raises:
            FedsprigError: The request is refused or the device's data cannot be used, by name.
        """
        if request.kind not in self._answers:
            raise MessageError(
                f"no message is called {request.kind!r}: "
                "server and device must run the same release"
            )
        # The number of threads belongs to the calling thread, and results depend on it.
        torch.set_num_threads(self.config.threads or os.cpu_count() or 1)
        try:
            return self._answers[request.kind](request)
        except FedsprigError:
            raise
        except Exception as error:
            # Whatever a message leads to that nobody thought of is a refusal, not the device's end.
            reason = f"{type(error).__name__}: {error}"[:200]
            raise MessageError(
                f"{request.kind} cannot be answered ({reason}): server and device must run the "
                "same release"
            ) from error

    @cached_property
    def pictures(self) -> ImageSet:
        """The pictures that the device trains on."""
        return self._split[0]

    @cached_property
    def _split(self) -> tuple[ImageSet, ImageSet]:
        data = read(**self.config.data)
        require_classes(data)
        if self.config.evaluation is None:
            return hold_out(data, HELD_OUT, seed=derive_seed(0, "held out", self.config.name))
        check = read(**self.config.evaluation)
        return data, check.only(data.classes)

    @cached_property
    def _base(self) -> BaseWeights | None:
        """The base model, where it is kept here and can be read: without it, weights are sent."""
        if self.config.base is None:
            return None
        try:
            return BaseWeights.load(**self.config.base)
        except (FedsprigError, OSError, ValueError) as error:
            log.warning("device %s goes on without its base model: %s", self.config.name, error)
            return None

    def _tensors(self, card: ModelCard, data: ImageSet) -> tuple[Tensor, Tensor]:
        return to_tensor(data.images, card), torch.from_numpy(data.labels)

    def _profile(self, request: Envelope) -> Envelope:
        parse(pb.ProfileRequest, request.body)
        reply = pb.ProfileReply(
            device=self.config.name,
            task=self.config.task,
            classes=self.pictures.classes,
            pictures=len(self.pictures),
            budget=to_wire(dict(self.config.budget)),
            cores=os.cpu_count() or 1,
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            plans=self.store.plans(),
            bases=[self._base.digest] if self._base else [],
        )
        return Envelope(PROFILE, reply.SerializeToString())

    def _describe(self, request: Envelope) -> Envelope:
        started = time.perf_counter()
        wanted = parse(pb.DescribeRequest, request.body)
        if digest(request.blob) != (wanted.sent or wanted.probe):
            raise MessageError("the probe is another than the message names: send it again")
        seen = self._observe(wanted, request.blob)
        reply = pb.DescribeReply(seconds=time.perf_counter() - started)
        return Envelope(DESCRIBE, reply.SerializeToString(), seen.sketch.to_bytes())

    def _observe(self, wanted: pb.DescribeRequest, package: bytes) -> Evidence:
        """What the probe makes of the pictures; its features stay here, if they will be needed."""
        probe = self._build(package)
        images, labels = self._tensors(probe.card, self.pictures)
        seen = observe(
            probe.module,
            shrink_plan(probe.plan, probe.mask),
            probe.card.head,
            images,
            labels,
            self.pictures.classes,
            probe=wanted.probe,
            noise=wanted.noise,
            rng=self._noise(wanted) if wanted.noise else None,
        )
        if wanted.keep and seen.features is not None:
            self.store.keep_features(wanted.probe, seen.features)
        return seen

    def _compare(self, request: Envelope) -> Envelope:
        started = time.perf_counter()
        wanted = parse(pb.CompareRequest, request.body)
        value = lookup(HEAD_VALUES, wanted.value, "value of classifiers", error=MessageError)
        heads, probe = unpack_heads(request.blob)
        seen = self._features(wanted.probe, probe)
        if heads[0].weight.shape[1] != seen.array.shape[1]:
            raise MessageError(
                f"classifiers of {heads[0].weight.shape[1]} features, the probe has "
                f"{seen.array.shape[1]}: send those of its own library"
            )
        reply = pb.CompareReply(pictures=len(seen.labels), values=head_values(value, seen, heads))
        reply.seconds = time.perf_counter() - started
        return Envelope(COMPARE, reply.SerializeToString())

    def _features(self, probe: str, package: bytes) -> Features:
        """The features of the pictures, as they were kept when these were described, or again."""
        if (kept := self.store.features(probe)) is not None:
            return kept
        if not package:
            raise MissingPartError("the features are gone: the server must send the whole probe")
        if digest(package) != probe:
            raise MessageError("the probe is another than the message names: send it again")
        seen = self._observe(pb.DescribeRequest(probe=probe, keep=True), package)
        return seen.need_features("a comparison")

    def _noise(self, wanted: pb.DescribeRequest) -> np.random.Generator:
        """Where a sketch's noise is drawn from: without the device's secret, nobody can rebuild it.

        The same request gets the same noise, since the mean of many draws would be free of it; and
        another level of noise gets another draw, since two levels of one would give it away.
        """
        if not math.isfinite(wanted.noise):
            raise MessageError(f"noise {wanted.noise}: ask for a number from 0 up")
        own = self.config.secret
        secret = bytes.fromhex(own) if own is not None else self.store.secret()
        text = f"sketch noise {wanted.probe} {wanted.noise.hex()}"
        mixed = hmac.digest(secret, text.encode(), "sha256")
        return np.random.default_rng(int.from_bytes(mixed, "big"))

    def _install(self, request: Envelope) -> Envelope:
        started = time.perf_counter()
        wanted = parse(pb.InstallRequest, request.body)
        network = self._build(request.blob)
        self.store.keep_package(wanted.run, request.blob)
        images, labels = self._tensors(network.card, self.pictures)
        recalibrate(network.module, images)
        vectors = features(network.module, network.card.head, images)
        found, numbers = vectors.numpy(), labels.numpy()
        means, counts = class_means(found, numbers, len(self.pictures.classes))
        arrays = travelling_statistics(network) | {
            "prototypes": means.astype(np.float32),
            "counts": counts,
        }
        reply = pb.InstallReply(
            pictures=len(labels),
            projected_variance=projected_variance(found, numbers, means),
            seconds=time.perf_counter() - started,
        )
        return Envelope(INSTALL, reply.SerializeToString(), pack(arrays))

    def _round(self, request: Envelope) -> Envelope:
        started = time.perf_counter()
        wanted = parse(pb.RoundRequest, request.body)
        package = self._package(wanted.run, wanted.network)
        network, received = self._load(package, wanted.adapter, request.blob)
        reply = pb.RoundReply(pictures=len(self.pictures))
        if wanted.evaluate:
            reply.evaluation.CopyFrom(self._check(network))
        images, labels = self._tensors(network.card, self.pictures)
        hold(network, received, wanted.training.trains)
        report = fit(
            network.module,
            images,
            labels,
            train_config(wanted.training),
            seed=derive_seed(wanted.seed, self.config.name, str(wanted.round)),
            head=network.card.head,
        )
        if not measures(network):  # who does, does so on whatever adapter it gets next
            recalibrate(network.module, images)
        delta = {
            name: value.numpy() - received[name] for name, value in travelling(network).items()
        }
        update = encode_update(delta, base_digest=wanted.adapter, codec=wanted.codec)
        reply.loss = report.losses[-1] if report.losses else 0.0
        reply.seconds = time.perf_counter() - started
        return Envelope(ROUND, reply.SerializeToString(), update)

    def _attention(self, request: Envelope) -> Envelope:
        started = time.perf_counter()
        wanted = parse(pb.AttentionRequest, request.body)
        package = self._package(wanted.run, wanted.network)
        network, _ = self._load(package, wanted.adapter, request.blob)
        rng = np.random.default_rng(derive_seed(wanted.seed, "attention", self.config.name))
        drawn = np.sort(rng.permutation(len(self.pictures))[: wanted.pictures])
        sums = attention_sums(
            network.module,
            shrink_plan(network.plan, network.mask),
            to_tensor(self.pictures.images[drawn], network.card),
            power=wanted.power,
            form=wanted.form,  # type: ignore[arg-type]
        )
        reply = pb.AttentionReply(pictures=len(drawn), evaluation=self._check(network))
        reply.seconds = time.perf_counter() - started
        return Envelope(ATTENTION, reply.SerializeToString(), pack(sums))

    def _cut(self, request: Envelope) -> Envelope:
        started = time.perf_counter()
        wanted = parse(pb.CutRequest, request.body)
        package = narrow_package(
            self.store.package(wanted.run), wanted.mask, wanted.content, plan_of=self.store.plan
        )
        network, _ = self._load(package, wanted.adapter, request.blob)
        self.store.keep_package(wanted.run, package)
        images, _ = self._tensors(network.card, self.pictures)
        if not measures(network):
            recalibrate(network.module, images)
        reply = pb.CutReply(pictures=len(images), seconds=time.perf_counter() - started)
        return Envelope(CUT, reply.SerializeToString(), pack(travelling_statistics(network)))

    def _evaluate(self, request: Envelope) -> Envelope:
        started = time.perf_counter()
        wanted = parse(pb.EvaluateRequest, request.body)
        package = self._package(wanted.run, wanted.network)
        network, _ = self._load(package, wanted.adapter, request.blob)
        if wanted.keep:
            trained = adapter_state(network.module)
            self.store.keep_adapter(wanted.run, encode_state(trained, "float32"))
        reply = pb.EvaluateReply(evaluation=self._check(network))
        blob = b""
        if wanted.scorer:
            images, labels = self._tensors(network.card, self.pictures)
            batches = labelled_batches(images, labels, SCORING_BATCH)
            plan = shrink_plan(network.plan, network.mask)
            blob = score(wanted.scorer, network.module, plan, batches).to_bytes()
        reply.seconds = time.perf_counter() - started
        return Envelope(EVALUATE, reply.SerializeToString(), blob)

    def _check(self, network: SubNetwork) -> pb.Evaluation:
        images, labels = self._tensors(network.card, self._split[1])
        found = evaluate(network.module, images, labels)
        return pb.Evaluation(accuracy=found.accuracy, loss=found.loss, pictures=found.pictures)

    def _build(self, package: bytes) -> SubNetwork:
        return build_subnetwork(
            package,
            plan_of=self.store.plan,
            keep_plan=self.store.keep_plan,
            base_of=lambda wanted: (
                self._base.state if self._base and self._base.digest == wanted else None
            ),
        )

    def _package(self, run: str, mask_digest: str) -> bytes:
        """The package of a run, if it is of the mask that is meant; empty means any."""
        package = self.store.package(run)
        if mask_digest not in ("", digest(parse(pb.SubNetwork, package).mask)):
            raise MissingNetworkError(
                f"the network of run {run!r:.80} here is another one: the server must send it"
            )
        return package

    def _load(
        self, package: bytes, wanted: str, blob: bytes
    ) -> tuple[SubNetwork, dict[str, np.ndarray]]:
        """The network of a package with an adapter in it, and the adapter as it came."""
        network = self._build(package)
        received = decode_state(blob)
        if state_digest(received) != wanted:
            raise StaleUpdateError("the adapter is another than the message names: send it again")
        values = {name: torch.from_numpy(value) for name, value in received.items()}
        if measures(network):
            values |= {n: b for n, b in network.module.named_buffers() if is_statistic(n)}
        load_adapter_state(network.module, values)
        if measures(network):
            recalibrate(network.module, self._tensors(network.card, self.pictures)[0])
        return network, received
