"""HAWQ-V2: bits for every layer by its average Hessian trace, and real quantisation to check them by."""

from hesse.compress.hawq.activation_sensitivity import activation_table, joint_table
from hesse.compress.hawq.activation_traces import activation_traces
from hesse.compress.hawq.allocation import (
    ParetoFrontier,
    Solver,
    allocate_bits,
    candidate_plans,
    floor_plans,
    pareto_frontier,
)
from hesse.compress.hawq.fisher_sensitivity import fisher_table
from hesse.compress.hawq.layers import QuantizableWeight, count_macs, quantizable_weights
from hesse.compress.hawq.packing import pack_integers, unpack_integers
from hesse.compress.hawq.plan import BitPlan, PlanComparison, uniform_plan
from hesse.compress.hawq.quantized import QuantizedModel, quantize_model
from hesse.compress.hawq.quantizer import QuantizationGrid, ScaleRule, UniformQuantizer
from hesse.compress.hawq.rounding import ActivationQuantizer, PackedWeight, RoundedWeight
from hesse.compress.hawq.selection import HAWQ, PlanLosses, plan_losses
from hesse.compress.hawq.sensitivity import SensitivityTable, quadratic_table, sensitivity_table
from hesse.compress.hawq.torchao_export import to_torchao
from hesse.compress.hawq.traces import LayerTraces, TraceProbing, layer_traces
from hesse.compress.hawq.training import fine_tune, fold_batch_norms

__all__ = [
    "HAWQ",
    "ActivationQuantizer",
    "BitPlan",
    "LayerTraces",
    "PackedWeight",
    "ParetoFrontier",
    "PlanComparison",
    "PlanLosses",
    "QuantizableWeight",
    "QuantizationGrid",
    "QuantizedModel",
    "RoundedWeight",
    "ScaleRule",
    "SensitivityTable",
    "Solver",
    "TraceProbing",
    "UniformQuantizer",
    "activation_table",
    "activation_traces",
    "allocate_bits",
    "candidate_plans",
    "count_macs",
    "fine_tune",
    "fisher_table",
    "floor_plans",
    "fold_batch_norms",
    "joint_table",
    "layer_traces",
    "pack_integers",
    "pareto_frontier",
    "plan_losses",
    "quadratic_table",
    "quantizable_weights",
    "quantize_model",
    "sensitivity_table",
    "to_torchao",
    "uniform_plan",
    "unpack_integers",
]
