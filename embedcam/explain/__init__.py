"""The method: from a forward pass and a weight database to heat maps, and Grad-CAM, which it is measured against."""

from typing import TYPE_CHECKING

from ..utils import lazy

if TYPE_CHECKING:
    from .answer import Answer
    from .comparison import Against
    from .compiled import CompiledExplainer
    from .explainer import Explainer
    from .explanation import Explanation
    from .gradcam import GradCAM

__all__ = ["Against", "Answer", "CompiledExplainer", "Explainer", "Explanation", "GradCAM"]

# An exported explainer uses the maps and explanations alone, and no torch.
__getattr__, __dir__ = lazy.attach(
    __name__,
    {
        "Against": ".comparison",
        "Answer": ".answer",
        "CompiledExplainer": ".compiled",
        "Explainer": ".explainer",
        "Explanation": ".explanation",
        "GradCAM": ".gradcam",
    },
)
