//! Operators of `ai.onnx.ml`.

use super::Operator;
use super::Rule::{Any, Only, Stated};
use super::Value::Text;

pub const OPERATORS: &[Operator] = &[
    Operator { name: "ArrayFeatureExtractor", rules: &[] },
    Operator {
        name: "CategoryMapper",
        rules: &[Any(&["cats_int64s", "cats_strings", "default_int64", "default_string"])],
    },
    Operator {
        name: "LinearClassifier",
        rules: &[
            Any(&["classlabels_ints", "classlabels_strings", "coefficients", "intercepts"]),
            Any(&["multi_class"]),
            Only("post_transform", &[Text("NONE"), Text("SOFTMAX"), Text("LOGISTIC")]),
        ],
    },
    Operator {
        name: "LinearRegressor",
        rules: &[
            Any(&["coefficients", "intercepts", "targets"]),
            Only("post_transform", &[Text("NONE"), Text("SOFTMAX"), Text("LOGISTIC")]),
        ],
    },
    // "MAX" divides by the largest value, where tract takes the largest magnitude.
    Operator { name: "Normalizer", rules: &[Stated("norm", &[Text("L1"), Text("L2")])] },
    Operator {
        name: "TreeEnsembleClassifier",
        rules: &[
            Any(&["base_values", "class_ids", "class_nodeids", "class_treeids", "class_weights"]),
            Any(&["classlabels_int64s", "classlabels_strings", "nodes_falsenodeids"]),
            // Hit rates say nothing about the answer.
            Any(&["nodes_featureids", "nodes_hitrates", "nodes_missing_value_tracks_true"]),
            Any(&["nodes_modes", "nodes_nodeids", "nodes_treeids", "nodes_truenodeids"]),
            Any(&["nodes_values"]),
            Only("post_transform", &[Text("NONE"), Text("SOFTMAX"), Text("LOGISTIC")]),
        ],
    },
];
