"""Explain images with one forward pass: no label, no partner image, no backward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..database.neighbors import Neighbors, searchable
from ..database.weight_database import WeightDatabase
from ..errors import DatabaseError
from ..nets import layers
from ..nets.network import Activations, Network
from .answer import Answer
from .attached import Attached, Latest
from .contributions import require_decomposable
from .explanation import Explanation, Outputs
from .fitting import CELLS, assumed_for, at_layer, default_transfer, dense_enough, lacking_to_fuse
from .maps import PLACEMENTS
from .module import ExplainerModule
from .question import Question, Reference
from .references import References
from .transfer import TRANSFERS

PRESETS = ("default", "fast", "fine", "paper")


class Explainer:
    """Heat maps from one forward pass: which cells make an image lie where it lies among the clusters.

    By default, the embedding of each cell of the feature layer tells whether it draws the image to where it lies among
    the clusters rather than elsewhere, see `Belonging`, and the heat is spread to the cells of a finer layer. Where
    the embedding is no sum over cells, stored channel weights are transferred: those of the nearest clusters are mixed
    by distance and contrasted with the mean over all clusters. The preset "paper" is the published method: the nearest
    cluster's weights, one layer, a plain resize. Other arguments override the preset; with `transfer`, one layer is
    used unless `fused` is set.

    Args:
        net: The network; its parameters are shared, its mode and feature layer are left as they are.
        database: Built for this network, or the path of its file.
        preset: "default"; "fast", the same at the size that the network was trained at; "fine", the same averaged with
            the maps of the mirrored images, unless something is asked; or "paper".
        transfer: "cells", or one of the registry `TRANSFERS`.
        fused: Multiply the maps of the feature layer with those of the database's finer layer.
        explain_size: (height, width) in pixels of `preprocess`, or the height alone, with the width in proportion; if
            None, the size that the database records as best.
        placement: "receptive-field" puts each cell at the centre of its receptive field; "stretch" is a bilinear
            resize.
        autocast: torch.bfloat16 or torch.float16 to run the network in that precision; None for its own.
        check: Require the network that the database was built for. If False, another one is used without a warning, if
            layer, channels and dimensions fit.

    Attributes:
        module: The `ExplainerModule` that computes the maps.
        preprocess: Turns a picture into an input of the size at which it is explained. Inputs of any other size work
            too.

    Raises:
        DatabaseError: If the database was built for another network, or lacks what the transfer needs.
        NetworkError: If the cells are to be asked, and the embedding is no sum over them.

    Source:
        Chen et al. 2020, Adapting Grad-CAM for Embedding Networks (arXiv 2001.06538), section 4.
    """

    def __init__(
        self,
        net: Network,
        database: WeightDatabase | str | Path,
        *,
        preset: str = "default",
        transfer: str | None = None,
        fused: bool | None = None,
        placement: str | None = None,
        explain_size: int | tuple[int, int] | None = None,
        autocast: torch.dtype | None = None,
        check: bool = True,
    ) -> None:
        db = database if isinstance(database, WeightDatabase) else WeightDatabase.load(database)
        if not check:
            db = assumed_for(net, db)
        if preset not in PRESETS:
            raise DatabaseError(f"unknown preset {preset!r}; use one of {', '.join(PRESETS)}")
        paper = preset == "paper"
        by_default = transfer is None and not paper
        placement = placement or ("stretch" if paper else "receptive-field")
        if placement not in PLACEMENTS:
            raise DatabaseError(f"unknown placement {placement!r}; use one of {', '.join(PLACEMENTS)}")
        # The published method explains images at the size that the network was trained at.
        refinement = db.refinement if by_default and preset != "fast" else None
        net = at_layer(net, db)
        if transfer is None:
            transfer = "cluster" if paper else default_transfer(net)
        elif transfer == CELLS:
            require_decomposable(net)
        lacking = lacking_to_fuse(db, transfer)
        if fused and lacking:
            raise DatabaseError(f"this weight database has no {lacking}")
        if fused is None:
            fused = by_default and not lacking
        self.transfer = transfer
        best = net.preprocess.input_size if refinement is None else refinement.input_size
        if isinstance(explain_size, int):
            height, width = net.preprocess.input_size
            explain_size = (explain_size, round(explain_size * width / height))
        size = explain_size or best
        if by_default and transfer == CELLS and net.density == (1, 1):
            net = dense_enough(net, db.geometry, size)
        self.module = ExplainerModule(
            net,
            db,
            None if transfer == CELLS else TRANSFERS[transfer](db),
            fused=fused,
            placement=placement,
            autocast=autocast,
            mirrored=preset == "fine",
        )
        self.preprocess = self.net.preprocess.resized_to(size)
        self._exemplars = None
        if db.exemplars is not None:
            self._exemplars = Neighbors(db.exemplars.embeddings, db.network.metric, db.exemplars.partitions)
        self._towards: Reference | None = None
        self._versus: Reference | None = None
        self._latest = Latest()
        self._lacking: list[str] = []  # notes on what only a pass of the explainer's own has
        # Listed once: walking through them takes longer than a heat map.
        self._modules = list(self.net.modules())

    @property
    def net(self) -> Network:
        """The network, at the database's feature layer."""
        return self.module.net

    @property
    def database(self) -> WeightDatabase:
        """The weight database."""
        return self.module.database

    def asking(self, *, towards: Any = None, versus: Any = None) -> Explainer:
        """Make an explainer that asks every image the same question: why is it near this, why not near that?

        Args:
            towards: What to compare images with, see `References.find`: a cluster's index, a label's name, an image
                or an embedding. Each image's own cluster if None.
            versus: If given, the question is why the images are nearer to `towards` than to this.

        Returns:
            A copy that returns `Answer`s; network and database are shared.

        Raises:
            NetworkError: If the network is not decomposable.
            DataError: If `towards` or `versus` cannot be understood.
        """
        require_decomposable(self.net)
        asking = copy.copy(self)
        asking._latest = Latest()
        references = References(self.net, self.database, self.preprocess)
        own = Reference.of_clusters(self.database, range(self.database.clusters))
        asking._towards = own if towards is None else references.find(towards)
        asking._versus = None if versus is None else references.find(versus)
        return asking

    @overload
    def __call__(self, images: Any) -> Explanation: ...

    @overload
    def __call__(self, images: Any, *, towards: Any, versus: Any = None) -> Answer: ...

    @overload
    def __call__(self, images: Any, *, versus: Any) -> Answer: ...

    @torch.inference_mode()
    def __call__(self, images: Any, *, towards: Any = None, versus: Any = None) -> Explanation:
        """Explain images.

        Args:
            images: (B, 3, H, W), normalised, a tensor or an array; moved to the network's device. Or pictures of any
                size, Pillow images or uint8 (H, W, 3), which `preprocess` prepares.
            towards: Ask why the images are near this, as for `asking`.
            versus: Ask why they are nearer to `towards`, by default their own cluster, than to this.

        Returns:
            Heat maps (B, H, W) in [0, 1], and each image's embedding, cluster, distance, typicality, anomaly and notes.
            An `Answer` with signed contributions if anything was asked.

        Raises:
            DataError: If the images are none of these.
            DatabaseError: If the finer layers of the database and the network differ in their number of channels.
            NetworkError: If something is asked, and the network is not decomposable.
        """
        if towards is not None or versus is not None:
            return self.asking(towards=towards, versus=versus)(images)
        batch = layers.as_images(self.net, torch.as_tensor(self.preprocess.batch(images)))
        batch = batch.contiguous(memory_format=self.net.memory_format)
        if self._towards is not None:
            return self._answer(self._run(batch), _size(batch), self._towards, self._versus)
        return self._explanation(*self._explain(batch))

    def attached(self, model: nn.Module) -> Attached:
        """Explain the forward passes of a module that runs anyway, in a `with` block: no pass is added.

            with explainer.attached(model) as attached:
                embeddings = model(images)
            explanation = attached.explanation      # the same as explainer.last()

        The images are explained at their own size, in the number type and memory format of the pass. A compiled module
        runs as plain Python inside the block. Passes of other threads are not explained.

        Args:
            model: The network, its module, or a module that contains it, in evaluation mode.

        Returns:
            A context manager, whose `explanation` is that of the last pass.

        Raises:
            NetworkError: If `model` does not contain the explainer's network.
        """
        plain = self._of_plain_pass()
        fusion = plain.module.fusion
        return Attached(
            self._latest, plain.net, None if fusion is None else fusion.layer, plain._explained, model, self._modules
        )

    def last(self) -> Explanation:
        """Return the explanation of the last forward pass that this thread ran in an `attached` block.

        Returns:
            As for a call.

        Raises:
            DataError: If there was none.
        """
        return self._latest.explanation

    def _of_plain_pass(self) -> Explainer:
        """Make an explainer of what the network's own forward pass sees, which notes what it lacks."""
        lacking = []
        if self.net.plain is not self.net:
            times = "{} x {} times".format(*self.net.density)
            lacking.append(f"the cells are those of the network's own pass; the explainer's has {times} as many")
        if self.module.mirrored and self._towards is None:
            lacking.append("the map is that of one pass; the explainer averages it with that of the mirrored image")
        if not lacking:
            return self
        plain = copy.copy(self)
        plain.module, plain._lacking = self.module.of(self.net.plain), lacking
        return plain

    def _explained(self, seen: Activations, size: tuple[int, int]) -> Callable[[], Explanation]:
        """Explain on the device; what is returned copies the explanation to the host."""
        if self._towards is not None:
            answer = self._answer(seen, size, self._towards, self._versus)
            return lambda: answer
        outputs, exemplars = self._outputs(seen, size)
        # A copy, since the embeddings may be the network's output, which its caller may change.
        outputs = outputs._replace(embedding=outputs.embedding.clone())
        return partial(self._explanation, outputs, exemplars)

    def _explanation(self, outputs: Outputs, exemplars: NDArray[np.int64] | None) -> Explanation:
        arrays = Outputs(*(values.numpy() for values in _on_host(outputs)))
        if exemplars is None and self._exemplars is not None:
            exemplars = self._search(arrays.embedding, 1)
        neighbors = None if exemplars is None else exemplars[:, 0]
        explanation = Explanation.of_outputs(arrays, self.net.preprocess, neighbors)
        for notes in explanation.notes:
            notes.extend(self._lacking)
        return explanation

    def _explain(self, images: Tensor) -> tuple[Outputs, NDArray[np.int64] | None]:
        outputs, exemplars = self._outputs(self._run(images), _size(images))
        if not self.module.mirrored:
            return outputs, exemplars
        with layers.evaluating(self.net, self._modules), _full_precision(images):
            return self.module.averaged(outputs, images), exemplars

    def _outputs(self, seen: Activations, size: tuple[int, int]) -> tuple[Outputs, NDArray[np.int64] | None]:
        exemplars = self._exemplars_of(seen.embeddings.float())
        with _full_precision(seen.maps):
            return self.module.explain(seen, size, _tensor(exemplars, seen.maps)), exemplars

    def _answer(self, seen: Activations, size: tuple[int, int], towards: Reference, versus: Reference | None) -> Answer:
        with _full_precision(seen.maps):
            embeddings = torch.nan_to_num(seen.embeddings.float())
            target = towards.choose(embeddings, self.net.metric)
            other = None if versus is None else versus.choose(embeddings, self.net.metric)
            question = Question(target.embeddings, None if other is None else other.embeddings, target.clusters)
            exemplars = self._exemplars_of(target.embeddings)
            outputs = self.module.explain(seen, size, _tensor(exemplars, seen.maps), question)
            similarity, *parts = _on_host(self.module.answer(seen, size, question))
        return Answer.of_evidence(
            self._explanation(outputs, None),
            similarity.numpy(),
            *(part.numpy() for part in parts),
            towards=target.names,
            versus=None if other is None else other.names,
        )

    @torch.inference_mode()
    def channel_weights(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Look up the channel weights that are stored for images like these.

        Args:
            images: (B, 3, H, W), normalised, on the network's device.

        Returns:
            The feature layer's maps (B, K, h, w) and their weights (B, K), zero for channels that are not used.
        """
        seen = self._run(images)
        exemplars = self._exemplars_of(seen.embeddings.float())
        with _full_precision(images):
            lookup = self.module.look_up(seen.embeddings.float(), _size(images), _tensor(exemplars, images))
            transfer = self.module.transfer or TRANSFERS["soft-contrast"](self.database).to(images.device)
            return seen.maps.float(), transfer(lookup, 0)

    def _run(self, images: Tensor) -> Activations:
        with layers.evaluating(self.net, self._modules):
            return self.module.run(images)

    def _exemplars_of(self, embeddings: Tensor) -> NDArray[np.int64] | None:
        """Search exemplars where the transfer needs them."""
        count = self.module.exemplars
        return self._search(embeddings.cpu().numpy(), count) if count else None

    def to(self, device: torch.device | str) -> Explainer:
        """Copy the explainer to a device.

        Args:
            device: Where the copy computes.

        Returns:
            An explainer with a network of its own; the database is shared.
        """
        moved = copy.copy(self)
        moved._latest = Latest()
        moved.module = copy.deepcopy(self.module, {id(self.database): self.database}).to(device)
        moved._modules = list(moved.net.modules())
        return moved

    def _search(self, embeddings: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        assert self._exemplars is not None
        usable = searchable(embeddings)[:, None]
        return self._exemplars.search(np.where(usable, embeddings, 0), count)[0]

    def labels_of(self, cluster: int) -> list[tuple[str, int]]:
        """List the most common labels of a cluster.

        Args:
            cluster: Its index.

        Returns:
            (name, count), the most common first; empty without labels.
        """
        return self.database.labels_of(cluster)

    def exemplar(self, index: int) -> tuple[str, str | None]:
        """Name a training image, such as the one that an image looks like.

        Args:
            index: Of an `Explanation`'s `neighbors`.

        Returns:
            Its path, relative to the data set, and its label, or None if that is unknown.
        """
        exemplars, names = self.database.exemplars, self.database.label_names
        assert exemplars is not None
        label = int(exemplars.label[index])
        return exemplars.path[index], names[label] if names is not None and label >= 0 else None


def _on_host(outputs: Iterable[Tensor]) -> list[Tensor]:
    """Copy to the host, waiting for a GPU only once."""
    copies = [(values.device, values.detach().to("cpu", non_blocking=True)) for values in outputs]
    if copies and copies[0][0].type == "cuda":
        torch.cuda.current_stream(copies[0][0]).synchronize()
    return [copy for _, copy in copies]


def _size(images: Tensor) -> tuple[int, int]:
    return int(images.shape[2]), int(images.shape[3])


def _tensor(exemplars: NDArray[np.int64] | None, images: Tensor) -> Tensor | None:
    return None if exemplars is None else torch.from_numpy(exemplars).to(images.device)


def _full_precision(images: Tensor) -> AbstractContextManager[object]:
    """Compute maps in float32 under an autocast of the caller's too."""
    return torch.autocast(images.device.type, enabled=False)
