"""What hesse contains, as plain data: behind ``hesse methods`` and the table in the README. Needs no torch.

A method joins when it is done. Measured values are not written here: they are read from ``benchmarks/results``.
"""

from dataclasses import dataclass

__all__ = ["METHODS", "Method", "Paper"]


@dataclass(frozen=True, slots=True)
class Paper:
    """Where a method comes from; ``arxiv`` is None for what was published elsewhere."""

    authors: str
    year: int
    arxiv: str | None


@dataclass(frozen=True, slots=True)
class Method:
    """One entry of the catalogue.

    Parameters
    ----------
    slug : str
        Name of its benchmark: ``benchmarks/<family>/<slug>.py`` and ``benchmarks/results/<slug>.json``.
    family : str
        The subpackage of ``hesse`` it lives in.
    title : str
        What it is, in a few words.
    papers : tuple of Paper
        The paper it follows first, then those it leans on.
    import_path : str
        Dotted path of the name to start with.
    claim : str
        What the benchmark holds it to, in one sentence without numbers.
    status : {"beta", "stable"}
        ``stable``: the interface changes only with a deprecation.
    """

    slug: str
    family: str
    title: str
    papers: tuple[Paper, ...]
    import_path: str
    claim: str
    status: str


METHODS: tuple[Method, ...] = (
    Method(
        slug="adasketch_newton",
        family="optim",
        title="Equality-constrained Newton steps by random projections, as accurate as descent needs",
        papers=(Paper("Hong, Na, Mahoney, Kolar", 2023, "2305.18379"),),
        import_path="hesse.optim.adasketch_newton",
        claim="solves at least nine in ten classical test problems by row steps alone, and agrees with SciPy",
        status="beta",
    ),
    Method(
        slug="bilevel_core",
        family="bilevel",
        title="Hypergradients by implicit and iterative differentiation, and the standard bilevel solvers",
        papers=(
            Paper("Pedregosa", 2016, "1602.02355"),
            Paper("Lorraine, Vicol, Duvenaud", 2020, "1911.02590"),
            Paper("Dagréou, Ablin, Vaiter, Moreau", 2022, "2201.13409"),
        ),
        import_path="hesse.bilevel.hypergradient",
        claim="exact on closed-form problems, and faster than torchopt at the same residual",
        status="beta",
    ),
    Method(
        slug="bo_rep",
        family="bilevel",
        title="Normalised momentum with a lower level that waits, for upper losses of unbounded smoothness",
        papers=(Paper("Hao, Gong, Liu", 2024, "2401.09587"),),
        import_path="hesse.bilevel.BOREP",
        claim="one step length for starts whose gradients differ by five decades, where fixed steps diverge or stall",
        status="beta",
    ),
    Method(
        slug="bsvrb",
        family="bilevel",
        title="Variance-reduced bilevel optimisation over many lower problems, a few blocks and rows a step",
        papers=(
            Paper("Hu, Qiu, Guo, Zhang, Yang", 2023, "2305.18730"),
            Paper("Jiang, Li, Wang, Zhang, Yang", 2022, "2207.08540"),
            Paper("Guo, Hu, Zhang, Yang", 2021, "2105.02266"),
        ),
        import_path="hesse.bilevel.BSVRB",
        claim="nearer the optimum than RSVRB and a plain single loop at equal samples, the more so the more blocks",
        status="beta",
    ),
    Method(
        slug="cbo",
        family="optim",
        title="Consensus-based optimisation and consensus hopping: global minima by evaluations alone",
        papers=(
            Paper("Riedl, Klock, Geldhauser, Fornasier", 2023, "2306.09778"),
            Paper("Pinnau, Totzeck, Tse, Martin", 2017, "1604.05648"),
            Paper("Carrillo, Jin, Li, Zhu", 2021, "1909.09249"),
        ),
        import_path="hesse.optim.CBO",
        claim="leaves valleys that trap gradient descent, and is as good as CBXpy in no more time",
        status="beta",
    ),
    Method(
        slug="comp_sum_losses",
        family="nn",
        title="Cross-entropy and its relatives with bounds on the error, and smooth adversarial training with them",
        papers=(Paper("Mao, Mohri, Zhong", 2023, "2304.07288"),),
        import_path="hesse.nn.CompSumLoss",
        claim="bounds hold and are met, wrong labels cost less, and robust training beats TRADES on clean inputs",
        status="beta",
    ),
    Method(
        slug="convex_relu",
        family="nn",
        title="Two-layer ReLU networks at their global optimum, plain or robust, with a certificate",
        papers=(
            Paper("Bai, Gautam, Sojoudi", 2023, "2201.01965"),
            Paper("Pilanci, Ergen", 2020, "2002.10553"),
        ),
        import_path="hesse.nn.ConvexReLUClassifier",
        claim="agrees with a general cone solver in a fraction of its time, and no start of Adam ends below it",
        status="beta",
    ),
    Method(
        slug="curvature_core",
        family="curvature",
        title="Hessian, Gauss-Newton and Fisher operators over a loader, and their spectra",
        papers=(
            Paper("Pearlmutter", 1994, None),
            Paper("Ghorbani, Krishnan, Xiao", 2019, "1901.10159"),
            Paper("Wu, Simon", 2000, None),
        ),
        import_path="hesse.curvature.hessian",
        claim="agrees with pyhessian, curvlinops and hessian-eigenthings, in the time and memory of the best of them",
        status="beta",
    ),
    Method(
        slug="dcdm",
        family="pde",
        title="Deep conjugate directions for Poisson problems on masked grids",
        papers=(Paper("Kaneda, Akar, Chen, Kala, Hyde, Teran", 2023, "2205.10763"),),
        import_path="hesse.pde.DeepConjugateDirection",
        claim="needs several times fewer steps than conjugate gradients, on obstacles and grids never seen in training",
        status="beta",
    ),
    Method(
        slug="dds",
        family="generative",
        title="Inverse problems with a diffusion prior: denoise, conjugate gradients, noise",
        papers=(Paper("Chung, Lee, Ye", 2024, "2303.05754"),),
        import_path="hesse.generative.DDS",
        claim="from noise ahead of DPS at equally many calls, in half the memory, without a backward pass",
        status="beta",
    ),
    Method(
        slug="diff2",
        family="optim",
        title="DIFF2: differentially private training by gradient differences, with exact accounting",
        papers=(
            Paper("Murata, Suzuki", 2023, "2302.03884"),
            Paper("Balle, Barthe, Gaboardi, Hsu, Sato", 2020, "1905.09982"),
            Paper("Mironov, Talwar, Zhang", 2019, "1908.10530"),
        ),
        import_path="hesse.optim.DIFF2",
        claim="ends at smaller gradients than private gradient descent at the same budget when records are many, and "
        "accounts as opacus does",
        status="beta",
    ),
    Method(
        slug="funbat",
        family="gp",
        title="Tucker and CP decompositions whose indices are real numbers, with error bars",
        papers=(Paper("Fang, Yu, Wang, Li, Kirby, Zhe", 2024, "2311.04829"),),
        import_path="hesse.gp.FunBaT",
        claim="far below tensor methods on bins, calibrated, and linear in the number of entries",
        status="beta",
    ),
    Method(
        slug="gauge_freedom",
        family="generative",
        title="Which part of a score field is a gradient, and the dimension of the data read from it",
        papers=(Paper("Horvat, Pfister", 2024, "2402.03845"),),
        import_path="hesse.generative.decompose",
        claim="a rotation that no sample shows spoils read-outs of dimension; removing it repairs them",
        status="beta",
    ),
    Method(
        slug="gaunt_tensor_product",
        family="equivariant",
        title="Products of features that turn with the frame, as products of functions on the sphere",
        papers=(
            Paper("Luo, Chen, Krishnapriyan", 2024, "2401.10216"),
            Paper("Xie, Daigavane, Kotak, Smidt", 2025, "2506.13523"),
        ),
        import_path="hesse.equivariant.gaunt_tensor_product",
        claim="exact, equivariant, and far faster than Clebsch-Gordan products over the same paths",
        status="beta",
    ),
    Method(
        slug="gp_hm",
        family="pde",
        title="Gaussian processes that learn the frequencies of a differential equation's solution",
        papers=(Paper("Fang, Cooley, Long, Li, Kirby, Zhe", 2024, "2311.04465"),),
        import_path="hesse.pde.GPHM",
        claim="solves oscillating equations to a thousandth, far below tuned networks with or without Fourier features",
        status="beta",
    ),
    Method(
        slug="grassmann_class",
        family="nn",
        title="Classes as subspaces, and SGD along geodesics",
        papers=(Paper("Wang, Li, Zhang", 2023, "2308.01547"),),
        import_path="hesse.nn.GrassmannLinear",
        claim="geodesics match pymanopt's, steps cost less than geoopt's, and features spread wider than under softmax",
        status="beta",
    ),
    Method(
        slug="hawq_v2",
        family="compress",
        title="Bits for every layer by its average Hessian trace, with quantisation to measure and train by",
        papers=(
            Paper("Dong, Yao, Cai, Arfeen, Gholami, Mahoney, Keutzer", 2020, "1911.03852"),
            Paper("Meyer, Musco, Musco, Woodruff", 2021, "2010.09649"),
        ),
        import_path="hesse.compress.HAWQ",
        claim="traces of all layers far faster than one at a time; the exact best plan for a size, and how good it is",
        status="beta",
    ),
    Method(
        slug="hessian_alignment",
        family="curvature",
        title="Domain generalisation by heads whose gradients and Hessians agree",
        papers=(
            Paper("Hemati, Zhang, Estiri, Chen", 2023, "2308.11778"),
            Paper("Rame, Dancette, Cord", 2022, "2109.02934"),
            Paper("Arjovsky, Bottou, Gulrajani, Lopez-Paz", 2019, "1907.02893"),
        ),
        import_path="hesse.curvature.HessianAlignmentLoss",
        claim="equals dense autograd, faster than probes; drops a misleading colour where noise is not learnt by heart",
        status="beta",
    ),
    Method(
        slug="hesso",
        family="compress",
        title="Groups of channels and heads faded out while training, and cut out exactly",
        papers=(Paper("Chen et al.", 2024, "2409.09085"),),
        import_path="hesse.compress.HESSO",
        claim="the cut network's outputs equal the zeroed one's; as accurate as torch-pruning where most channels go",
        status="beta",
    ),
    Method(
        slug="hierarchical_polynomials",
        family="nn",
        title="Functions of one hidden polynomial, learnt layer by layer",
        papers=(Paper("Wang, Nichani, Lee", 2024, "2311.13774"),),
        import_path="hesse.nn.HierarchicalPolynomialRegressor",
        claim="a quadratic feature from a few d^2 samples; the best kernel is not there with 16 d^2",
        status="beta",
    ),
    Method(
        slug="influence_candidates",
        family="influence",
        title="Which rows are worth scoring: a token index on disk, and projected gradients for instant questions",
        papers=(Paper("Grosse, Bae, Anil et al.", 2023, "2308.03296"), Paper("Choe et al.", 2024, "2405.13954")),
        import_path="hesse.influence.Prefilter",
        claim="keeps what a full pass would rank first, says what it missed, and answers from an index in no time",
        status="beta",
    ),
    Method(
        slug="influence_ekfac",
        family="influence",
        title="EK-FAC influence functions for language models",
        papers=(
            Paper("Grosse, Bae, Anil et al.", 2023, "2308.03296"),
            Paper("George et al.", 2018, "1806.03884"),
            Paper("Bae et al.", 2022, "2209.05364"),
        ),
        import_path="hesse.influence.Influence",
        claim="agrees with dense curvature where that can be formed, and with kronfluence, in less time and memory",
        status="beta",
    ),
    Method(
        slug="influence_scale",
        family="influence",
        title="Influence functions at scale: compiled models, several processes, streams, contractions by cost",
        papers=(
            Paper("Grosse, Bae, Anil et al.", 2023, "2308.03296"),
            Paper("George et al.", 2018, "1806.03884"),
        ),
        import_path="hesse.influence.Influence",
        claim="takes half the time and memory of other libraries for the same scores, over any number of processes",
        status="beta",
    ),
    Method(
        slug="influence_trajectory",
        family="influence",
        title="Influence through the training run: exact derivatives (magic), and segments of curvature (source)",
        papers=(Paper("Ilyas, Engstrom", 2025, "2504.16430"), Paper("Bae et al.", 2024, "2405.12186")),
        import_path="hesse.influence.magic",
        claim="equals retraining to seven digits in memory that grows with the logarithm of the steps",
        status="beta",
    ),
    Method(
        slug="influence_truth",
        family="influence",
        title="Is a score true? Retraining, the proximal response and calibration of influence scores",
        papers=(
            Paper("Park et al.", 2023, "2303.14186"),
            Paper("Bae et al.", 2022, "2209.05364"),
            Paper("Ilyas, Engstrom", 2025, "2504.16430"),
        ),
        import_path="hesse.influence.validate",
        claim="predicts what fine-tuning on other data does, ahead of peers, and small changes in nats, slope and all",
        status="beta",
    ),
    Method(
        slug="influence_viewer",
        family="web",
        title="The viewer of influence runs: ranked rows, tokens, layers and the health of the fit in a browser",
        papers=(Paper("Grosse, Bae, Anil et al.", 2023, "2308.03296"),),
        import_path="hesse.web.serve",
        claim="shows a run of 100,000 rows at once, answers steadily, does not grow, and survives malformed questions",
        status="beta",
    ),
    Method(
        slug="lie_decompositions",
        family="equivariant",
        title="Convolutions over the plane and a group of linear maps, for images deformed as none in training was",
        papers=(Paper("Mironenco, Forré", 2024, "2310.11366"),),
        import_path="hesse.equivariant.LieResNet",
        claim="trained on upright digits, reads them under any rotation and mild affine maps; a plain CNN does not",
        status="beta",
    ),
    Method(
        slug="linalg_core",
        family="linalg",
        title="Operators, solvers and estimators that need only products with a matrix",
        papers=(
            Paper("Epperly, Tropp, Webber", 2023, "2301.07825"),
            Paper("Frangella, Tropp, Udell", 2021, "2110.02820"),
            Paper("Ubaru, Chen, Saad", 2017, None),
        ),
        import_path="hesse.linalg.LinearOperator",
        claim="agrees with dense float64, and solves many right-hand sides faster than one at a time",
        status="beta",
    ),
    Method(
        slug="linf_regression",
        family="linalg",
        title="Sketched least squares with an even error in every coordinate",
        papers=(
            Paper("Song, Ye, Yin, Zhang", 2023, "2302.00248"),
            Paper("Price, Song, Woodruff", 2017, "1705.10723"),
            Paper("Epperly", 2024, "2311.04362"),
        ),
        import_path="hesse.linalg.sketched_lstsq",
        claim="spreads the error where a sparse sketch puts it in one coordinate; full accuracy faster than LAPACK",
        status="beta",
    ),
    Method(
        slug="lv_hba",
        family="bilevel",
        title="Bilevel problems with coupled lower constraints, by gradients of a proximal Lagrangian value function",
        papers=(Paper("Yao, Yu, Zeng, Zhang", 2024, "2401.16164"),),
        import_path="hesse.bilevel.LVHBA",
        claim="closed forms at any size with one setting, and learnt costs that find wrong labels",
        status="beta",
    ),
    Method(
        slug="mbat_vsa",
        family="vsa",
        title="MBAT with orthogonal matrices: any JSON record as one vector, to compare, search and read back",
        papers=(Paper("Gallant", 2022, "2202.04771"), Paper("Gallant, Okaywe", 2013, None)),
        import_path="hesse.vsa.JSONEncoder",
        claim="finds flat records with all values disturbed where hashed fields and trigrams miss many; nesting counts",
        status="beta",
    ),
    Method(
        slug="mfac",
        family="curvature",
        title="Exact products with the inverse empirical Fisher matrix of m gradients, and M-FAC descent",
        papers=(Paper("Frantar, Kurtic, Alistarh", 2021, "2107.03356"),),
        import_path="hesse.curvature.MFACInverse",
        claim="keeps all digits in float32 at small damping; solves far faster than conjugate gradients; prunes to "
        "a tenth in one shot where magnitude collapses",
        status="beta",
    ),
    Method(
        slug="monge_gap",
        family="transport",
        title="The Monge gap: a regulariser that makes any network an optimal transport map, for any cost",
        papers=(Paper("Uscidda, Cuturi", 2023, "2302.04953"),),
        import_path="hesse.transport.MongeMap",
        claim="maps near the optimal one where a fit of the image alone turns or crosses, on planes and on a sphere",
        status="beta",
    ),
    Method(
        slug="neural_pde",
        family="pde",
        title="Nonlinear elliptic equations by certified descent whose iterates are two-layer networks",
        papers=(Paper("Marwah, Lipton, Lu, Risteski", 2023, "2210.12101"),),
        import_path="hesse.pde.PreconditionedDescent",
        claim="takes the same steps on every mesh and finds the same digits in ten and in fifty dimensions",
        status="beta",
    ),
    Method(
        slug="optimistic_omd",
        family="optim",
        title="Optimistic online mirror descent, for losses that drift, are drawn at random, or both",
        papers=(
            Paper("Chen, Zhang, Tu, Zhao, Zhang", 2024, "2302.04552"),
            Paper("Zhao, Zhang, Zhang, Zhou", 2024, "2112.14368"),
        ),
        import_path="hesse.optim.OptimisticOMD",
        claim="far below gradient descent, AdaGrad and Newton steps where gradients vary slowly; elsewhere in bounds",
        status="beta",
    ),
    Method(
        slug="penalty_bilevel",
        family="bilevel",
        title="Penalty methods for nonconvex bilevel problems, by gradients alone",
        papers=(
            Paper("Kwon, Kwon, Wright, Nowak", 2024, "2309.01753"),
            Paper("Kwon, Kwon, Wright, Nowak", 2023, "2301.10945"),
        ),
        import_path="hesse.bilevel.PenaltyBilevel",
        claim="finds the best of many lower solutions, and cleans data as well as solvers by second derivatives",
        status="beta",
    ),
    Method(
        slug="policy_gradient",
        family="rl",
        title="Normalised and Hessian-aided policy gradients: N-PG-IGT, HARPG, N-HARPG",
        papers=(
            Paper("Fatkhullin, Barakat, Kireeva, He", 2023, "2302.01734"),
            Paper("Cutkosky, Mehta", 2020, "2002.03305"),
        ),
        import_path="hesse.rl.NPGIGT",
        claim="remembers old batches without momentum's bias: errors of the gradient far below, against exact ones",
        status="beta",
    ),
    Method(
        slug="rmt_learning_rates",
        family="curvature",
        title="Curvature that batches see, and the learning rates that follow, from measured curvature noise",
        papers=(
            Paper("Granziol, Zohren, Roberts", 2022, "2006.09092"),
            Paper("Benaych-Georges, Nadakuditi", 2011, "0910.2120"),
        ),
        import_path="hesse.curvature.curvature_noise",
        claim="predicts how sharp batches of any size are from one measurement; rates carried by it beat fixed ones",
        status="beta",
    ),
    Method(
        slug="rvgp",
        family="gp",
        title="Gaussian process of vector fields on a surface known by points alone, with error bars and singularities",
        papers=(
            Paper(
                "Peach, Vinao-Carl, Grossman, David, Mallas, Sharp, Malhotra, Vandergheynst, Gosztolai",
                2024,
                "2309.16746",
            ),
            Paper("Borovitskiy, Terenin, Mostowsky, Deisenroth", 2020, "2006.10160"),
        ),
        import_path="hesse.gp.RVGP",
        claim="few vectors suffice where components apart, or distance through space, mislead; zeros stay in place",
        status="beta",
    ),
    Method(
        slug="sgd_stability",
        family="curvature",
        title="Which minima SGD can stay at: exact second moments for any batch size, momentum and sampling",
        papers=(
            Paper("Wu, Su", 2023, "2305.17490"),
            Paper("Wu, Wang, Su", 2022, "2207.02628"),
            Paper("Wu, Ma, E", 2018, None),
        ),
        import_path="hesse.curvature.stability_report",
        claim="says beforehand at which minima SGD stays and which it leaves, where gradient descent stays at both",
        status="beta",
    ),
    Method(
        slug="singular_likelihood",
        family="generative",
        title="Likelihood for data on thin sets: perturb the data, fit, sample without noise",
        papers=(Paper("Chae, Kim, Kim, Lin", 2023, "2105.04046"),),
        import_path="hesse.generative.PerturbedGenerativeMLE",
        claim="where data lie on a curve in many dimensions, spreads mass better than plain likelihood does",
        status="beta",
    ),
    Method(
        slug="sinkhorn_newton_sparse",
        family="transport",
        title="Sinkhorn-Newton-Sparse: entropic optimal transport to high accuracy, batched and differentiable",
        papers=(
            Paper("Tang, Shavlovsky, Rahmanian, Tardini, Thekumparampil, Xiao, Ying", 2024, "2401.12253"),
            Paper("Wu, Liang, Yang", 2025, "2502.03749"),
        ),
        import_path="hesse.transport.sinkhorn_newton",
        claim="reaches ten digits in a few Newton steps where Sinkhorn needs thousands of sweeps, on hard costs too",
        status="beta",
    ),
    Method(
        slug="smash_spgemm",
        family="linalg",
        title="Sparse matrix product by windows and a hashed scratchpad, with a model of its memory traffic",
        papers=(Paper("Shivdikar", 2021, "2105.14156"),),
        import_path="hesse.linalg.spgemm",
        claim="multiplies matrices of many partial products a row faster than SciPy; counts traffic and probes",
        status="beta",
    ),
    Method(
        slug="subgm",
        family="optim",
        title="Robust recovery of low-rank matrices by sub-gradients from a tiny start, whatever rank is allowed",
        papers=(Paper("Ma, Fattahi", 2023, "2202.08788"),),
        import_path="hesse.optim.SubGM",
        claim="recovers under gross errors with the rank unknown, where least squares and a large start do not",
        status="beta",
    ),
    Method(
        slug="target_surrogates",
        family="optim",
        title="Target-based surrogates: one expensive gradient on a model's outputs, many updates of its parameters",
        papers=(Paper("Lavington, Vaswani, Babanezhad, Schmidt, Le Roux", 2023, "2302.02607"),),
        import_path="hesse.optim.SSO",
        claim="far fewer oracle gradients than descent, tuned or with line search, and expert labels in imitation",
        status="beta",
    ),
    Method(
        slug="vr_halpern",
        family="optim",
        title="Variance-reduced Halpern iteration for finite-sum monotone inclusions, with certified residuals",
        papers=(
            Paper("Cai, Alacaoglu, Diakonikolas", 2024, "2310.02987"),
            Paper("Li, Bao, Zhang, Richtárik", 2021, "2008.10898"),
            Paper("Alacaoglu, Malitsky", 2022, "2102.08352"),
        ),
        import_path="hesse.optim.vr_halpern",
        claim="smaller certified residuals than full-pass methods on sums of many components; linear with restarts",
        status="beta",
    ),
)
