"""The papers that placements come from, as BibTeX.

Titles, authors and years were checked against public listings. What could not be checked is left out: a listing with
`and others` names the authors that are certain, one without `author` none.
"""

from __future__ import annotations

from propagate.model import ModelError, as_placement
from propagate.placement import Placement

_VASWANI = (
    "Vaswani, Ashish and Shazeer, Noam and Parmar, Niki and Uszkoreit, Jakob and Jones, Llion and Gomez, Aidan N."
    " and Kaiser, Lukasz and Polosukhin, Illia"
)
_XIONG = (
    "Xiong, Ruibin and Yang, Yunchang and He, Di and Zheng, Kai and Zheng, Shuxin and Xing, Chen and Zhang, Huishuai"
    " and Lan, Yanyan and Wang, Liwei and Liu, Tie-Yan"
)
_KEDIA = "Kedia, Akhil and Zaidi, Mohd Abbas and Khyalia, Sushil and Jung, Jungho and Goka, Harshith and Lee, Haejun"
_KIM = (
    "Kim, Jeonghoon and Lee, Byeongchan and Park, Cheonbok and Oh, Yeontaek and Kim, Beomjun and Yoo, Taehwan and Shin,"
    " Seongjin and Han, Dongyoon and Shin, Jinwoo and Yoo, Kang Min"
)
_ZHUO = (
    "Zhuo, Zhijian and Zeng, Yutao and Wang, Ya and Zhang, Sijun and Yang, Jian and Li, Xiaoqing and Zhou, Xun and Ma,"
    " Jinwen"
)
_XIE = (
    "Xie, Shufang and Zhang, Huishuai and Guo, Junliang and Tan, Xu and Bian, Jiang and Awadalla, Hany Hassan and"
    " Menezes, Arul and Qin, Tao and Yan, Rui"
)
_LI = (
    "Li, Tianyu and Han, Dongchen and Cao, Zixuan and Huang, Haofeng and Zhou, Mengyu and Chen, Ming and Zhao, Erchao"
    " and Jiang, Xiaoxi and Jiang, Guanjun and Huang, Gao"
)
_WANG = (
    "Wang, Hongyu and Ma, Shuming and Huang, Shaohan and Dong, Li and Wang, Wenhui and Peng, Zhiliang and Wu, Yu and"
    " Bajaj, Payal and Singhal, Saksham and Benhaim, Alon and Patra, Barun and Liu, Zhun and Chaudhary, Vishrav and"
    " Song, Xia and Wei, Furu"
)
_BACHLECHNER = (
    "Bachlechner, Thomas and Majumder, Bodhisattwa Prasad and Mao, Henry and Cottrell, Gary and McAuley, Julian"
)

REFERENCES: dict[str, dict[str, str]] = {
    "1706.03762": {"title": "Attention Is All You Need", "author": _VASWANI},
    "1908.11365": {
        "title": "Improving Deep Transformer with Depth-Scaled Initialization and Merged Attention",
        "author": "Zhang, Biao and Titov, Ivan and Sennrich, Rico",
    },
    "2002.04745": {"title": "On Layer Normalization in the Transformer Architecture", "author": _XIONG},
    "2003.04887": {"title": "ReZero is All You Need: Fast Convergence at Large Depth", "author": _BACHLECHNER},
    "2004.08249": {"title": "Understanding the Difficulty of Training Transformers", "author": "Liu and others"},
    "2103.17239": {"title": "Going Deeper with Image Transformers", "author": "Touvron and others"},
    "2105.13290": {
        "title": "CogView: Mastering Text-to-Image Generation via Transformers",
        "author": "Ding and others",
    },
    "2203.00555": {"title": "DeepNet: Scaling Transformers to 1,000 Layers", "author": "Wang and others"},
    "2204.02311": {"title": "PaLM: Scaling Language Modeling with Pathways", "author": "Chowdhery and others"},
    "2206.00330": {
        "title": "B2T Connection: Serving Stability and Performance in Deep Transformers",
        "author": "Takase, Sho and Kiyono, Shun and Kobayashi, Sosuke and Suzuki, Jun",
    },
    "2210.06423": {"title": "Foundation Transformers", "author": _WANG},
    "2304.14802": {"title": "ResiDual: Transformer with Dual Residual Connections", "author": _XIE},
    "2403.09635": {
        "title": "Transformers Get Stable: An End-to-End Signal Propagation Theory for Language Models",
        "author": _KEDIA,
    },
    "2410.01131": {
        "title": "nGPT: Normalized Transformer with Representation Learning on the Hypersphere",
        "author": "Loshchilov, Ilya and Hsieh, Cheng-Ping and Sun, Simeng and Ginsburg, Boris",
    },
    "2412.13795": {
        "title": "Mix-LN: Unleashing the Power of Deeper Layers by Combining Pre-LN and Post-LN",
        "author": "Li, Pengxiang and Yin, Lu and Liu, Shiwei",
    },
    "2501.00656": {"title": "2 OLMo 2 Furious", "year": "2024"},
    "2502.02732": {"title": "Peri-LN: Revisiting Normalization Layer in the Transformer Architecture", "author": _KIM},
    "2502.05795": {"title": "The Curse of Depth in Large Language Models"},
    "2503.04598": {
        "title": "HybridNorm: Towards Stable and Efficient Transformer Training via Hybrid Normalization",
        "author": _ZHUO,
    },
    "2503.10622": {"title": "Transformers without Normalization", "author": "Zhu and others"},
    "2509.01322": {"title": "LongCat-Flash Technical Report", "author": "{Meituan LongCat Team}"},
    "2601.19895": {
        "title": "Post-LayerNorm Is Back: Stable, ExpressivE, and Deep",
        "author": "Chen, Chen and Wei, Lai",
    },
    "2601.22580": {"title": "SpanNorm: Reconciling Training Stability and Performance in Deep Transformers"},
    "2602.08064": {"title": "SiameseNorm: Breaking the Barrier to Reconciling Pre/Post-Norm", "author": _LI},
    "huang2020tfixup": {
        "title": "Improving Transformer Optimization Through Better Initialization",
        "author": "Huang, Xiao Shi and Perez, Felipe and Ba, Jimmy and Volkovs, Maksims",
        "booktitle": "Proceedings of the 37th International Conference on Machine Learning",
        "series": "PMLR",
        "volume": "119",
        "pages": "4475--4483",
        "year": "2020",
    },
}
"""By arXiv id, or by a key of our own for a paper without one. Preprints carry the year of their arXiv id."""


def citation(name: str | Placement) -> str:
    """The paper of a placement, as BibTeX.

    Raises:
        ModelError: for an unknown placement, or one that cites nothing.

    Example:
        >>> print(citation("spannorm"))
        @misc{arxiv:2601.22580,
          title = {{SpanNorm: Reconciling Training Stability and Performance in Deep Transformers}},
          year = {2026},
          eprint = {2601.22580},
          archivePrefix = {arXiv},
        }
    """
    key = as_placement(name).citation
    if key not in REFERENCES:
        raise ModelError(f"placement {name!r} names no paper that is known: citation={key!r}")
    fields = REFERENCES[key]
    if "booktitle" in fields:
        return _entry("inproceedings", key, fields)
    preprint = {"year": f"20{key[:2]}", "eprint": key, "archivePrefix": "arXiv"}
    return _entry("misc", f"arxiv:{key}", fields | {name: fields.get(name, value) for name, value in preprint.items()})


def _entry(kind: str, key: str, fields: dict[str, str]) -> str:
    """One BibTeX entry; a title's capitals are kept."""
    values = {name: f"{{{value}}}" if name == "title" else value for name, value in fields.items()}
    lines = [f"  {name} = {{{value}}}," for name, value in values.items()]
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])
