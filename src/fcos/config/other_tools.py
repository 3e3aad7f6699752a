"""Names of settings in other tools: not accepted, since meanings may differ, but the error suggests ours.

Ultralytics, MMDetection, detectron2 (and AdelaiDet), torchvision's references, and common names.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection

# Our setting, or several that belong together, and its names in other tools; in lower case, with "_" for "-".
# Of a dotted name ("solver.base_lr") only the last part is listed if it is unambiguous.
SAME = {
    "nbatch_train": "batch batch_size train_batch_size samples_per_gpu images_per_gpu ims_per_batch bs",
    "nbatch_eval": "val_batch_size eval_batch_size test_batch_size val_dataloader.batch_size",
    "nbatch_train, micro_batch": "nbs accumulate accumulate_grad_batches accumulative_counts "
    "grad_accum_steps gradient_accumulation_steps",
    "view_size, short_side": "imgsz img_size image_size imgsize img_scale input_size resize size height "
    "width",
    "short_side": "min_size min_size_train min_size_test shortest_edge",
    "view_size": "max_size max_size_train max_size_test longest_edge",
    "img_scale_min": "scale multi_scale multiscale min_size_train_sampling random_scale",
    "epochs": "max_epochs num_epochs n_epochs epoch nepochs total_epochs max_iter max_iters max_steps "
    "iters iterations",
    "patience": "early_stopping early_stop early_stopping_patience",
    "time_limit": "time max_time max_hours train_time max_train_time",
    "eval_epochs": "val_interval val_period eval_interval evaluation.interval eval_period "
    "check_val_every_n_epoch",
    "save_steps": "save_period checkpoint_period checkpoint_config.interval save_interval save_freq "
    "checkpoint_interval",
    "lr_base": "lr lr0 learning_rate base_lr initial_lr blr",
    "lr_policy": "cos_lr scheduler lr_scheduler lr_config lr_config.policy lr_scheduler_name "
    "param_scheduler cosine",
    "lr_schedule": "lr_steps steps milestones lr_config.step lr_step_size step_size lr_drop",
    "lr_gamma": "gamma lr_factor",
    "warmup_iter": "warmup warmup_iters warmup_epochs warmup_steps",
    "optimizer": "opt optim optimizer.type optim_wrapper.optimizer.type",
    "momentum": "beta1",
    "weight_decay": "wd decay",
    "grad_clip": "clip_grad max_norm gradient_clip_val clip_gradients solver.clip_gradients.clip_value "
    "clip_grad_norm clip_max_norm max_grad_norm",
    "ema_decay": "ema model_ema use_ema model_ema.enabled",
    "precision": "amp half fp16 fp32 bf16 mixed_precision use_amp solver.amp.enabled dtype",
    "num_workers": "workers workers_per_gpu j nw",
    "device": "gpu gpus gpu_ids gpu_id cuda num_gpus devices accelerator launcher",
    "seed": "random_seed random_state manual_seed",
    "load": "resume resume_from resume_training",
    "pretrain": "weights pretrained load_from init_cfg weights_backbone checkpoint ckpt backbone_weights "
    "pretrained_weights init_weights finetune",
    "run_folder": "project name work_dir output_dir out_dir save_dir exist_ok experiment exp_name logdir "
    "log_dir output",
    "save": "no_save nosave",
    "tensorboard": "use_tensorboard vis_backends",
    "loggers": "logger wandb use_wandb mlflow use_mlflow report_to log_with",
    "model": "preset arch architecture cfg config meta_architecture",
    "backbone": "model.backbone.name backbone.type depth encoder",
    "freeze_stages": "freeze frozen_stages freeze_at trainable_backbone_layers",
    "freeze_bn": "norm_eval freeze_norm frozen_bn model.resnets.norm",
    "stride_in_1x1": "style",
    "pixel_mean": "mean img_mean",
    "pixel_std": "std img_std",
    "head_channels": "feat_channels",
    "head_convs": "stacked_convs num_convs num_cls_convs num_box_convs",
    "head_norm": "norm_cfg norm",
    "fpn_channels": "out_channels",
    "fpn_extra_from": "add_extra_convs",
    "strides": "fpn_strides",
    "regress_ranges": "regress_range sizes_of_interest",
    "center_radius": "center_sample_radius pos_radius",
    "center_sampling": "center_sample",
    "normalize_targets": "norm_on_bbox",
    "quality_tower": "centerness_on_reg",
    "box_loss": "loss_bbox iou_loss_type loc_loss_type reg_loss",
    "box_loss_weight": "box",
    "focal_alpha": "alpha loss_alpha",
    "focal_gamma": "loss_gamma",
    "list_train": "data train train_data ann_file train_ann annotations train_json dataset train_list "
    "dataset_path data_path",
    "root_train": "data_root img_prefix data_prefix img_dir image_dir images train_images img_folder",
    "list_eval": "val valid val_data val_ann test val_list val_json",
    "root_eval": "val_images val_img_dir",
    "name_file": "names class_names class_file metainfo",
    "classes": "nc num_classes n_classes number_of_classes",
    "data_format": "dataset_type",
    "augmentation": "augment augmentations aug hsv_h hsv_s hsv_v degrees shear perspective translate "
    "flipud auto_augment color_jitter rotate data_augmentation albumentations transforms train_pipeline",
    "mix_until": "close_mosaic close_mosaic_epochs",
    "mixup": "mix_up mixup_prob",
    "mosaic": "mosaic_prob",
    "horizontal_flip": "fliplr flip flip_prob random_flip hflip",
    "score_threshold": "conf conf_thres conf_thresh confidence score_thr score_thresh inference_th_test "
    "box_score_thresh",
    "nms_iou": "iou iou_thres iou_thresh iou_threshold nms_thresh nms_thr nms_th box_nms_thresh",
    "detections_per_image": "max_det max_per_img max_dets topk box_detections_per_img",
    "candidates_per_level": "nms_pre topk_candidates pre_nms_topk pre_nms_topk_test",
    "compile": "torch_compile",
    "num_processes": "nproc world_size nproc_per_node num_machines",
    "activation_checkpointing": "with_cp gradient_checkpointing grad_checkpointing use_checkpoint",
    "class_weights": "cls_pw class_weight loss_cls.class_weight",
    "repeat_threshold": "oversample_thr repeat_thr dataloader.repeat_threshold balanced_sampling "
    "class_balanced image_weights",
    "skip_invalid": "ignore_errors skip_broken",
}

# Keys without an equivalent: the most similar setting, or why there is none.
NONE = {
    "lrf final_lr min_lr lr_min eta_min": 'with "lr_policy": "cosine" the learning rate decays to 0',
    "warmup_momentum warmup_bias_lr warmup_factor warmup_ratio": (
        '"warmup_iter" is the length of the warm-up, which is linear from 0'
    ),
    "cutmix copy_paste_mode erasing random_erasing": (
        'the strongest is "augmentation": "strong"; "mosaic", "mixup" and "copy_paste" mix images'
    ),
    "cls dfl pose kobj loss_weight label_smoothing": "the losses have equal weights",
    "cache cache_images": "images are not cached",
    "ema_momentum": '"ema_decay" is 1 - momentum',
    "rect aspect_ratio_group_factor": "images are always grouped into landscape and portrait batches",
    "single_cls": "give annotations with one class",
    "deterministic use_deterministic_algorithms cudnn_benchmark": (
        'initial weights, data order and augmentation depend only on "seed"'
    ),
    "dropout drop_path": "the network has no dropout",
    "sync_bn syncbn": 'the head uses group norm, and "freeze_bn" freezes the batch norm of the backbone',
    "fraction": "shorten the list of annotations",
    "auto_scale_lr": 'without "lr_base" the learning rate is scaled with "nbatch_train"',
    "plots plot verbose profile print_freq log_interval log_period": "curves and report are always written",
    "task mode": "`fcos train` trains detectors; the other commands are in `fcos --help`",
    "tta test_time_augmentation": "`fcos predict --tta` and `fcos eval --tta` do it",
    "dist_url dist_backend start_epoch test_only": "it has no equivalent",
}

_SAME = {word: ours for ours, words in SAME.items() for word in words.split()}
_NONE = {word: why for words, why in NONE.items() for word in words.split()}


def plain_key(key: str) -> str:
    """A key in lower case, without leading dashes, and with "_" for "-"."""
    return key.strip().lstrip("-").lower().replace("-", "_")


def settings_for(key: str) -> list[str]:
    """Our settings for a key of another tool; empty if it has no equivalent or is unknown."""
    ours = _entry(_SAME, key)
    return ours.split(", ") if ours else []


def why_none(key: str) -> str:
    """An explanation for a key that has no equivalent; empty if unknown."""
    return _entry(_NONE, key)


def nearest(key: str, names: Collection[str]) -> str | None:
    """The closest match for a key, or its last part."""
    word = plain_key(key).rpartition(".")[2]
    return next(iter([word] if word in names else difflib.get_close_matches(word, names, n=1)), None)


def _entry(table: dict[str, str], key: str) -> str:
    word = plain_key(key)
    return table.get(word) or table.get(word.rpartition(".")[2], "")


def is_weight_file(name: str) -> bool:
    """Whether the value of `model` is a file or a model of Ultralytics, not a preset."""
    return name.lower().endswith(
        (".pt", ".pth", ".safetensors", ".yaml", ".yml", ".onnx", ".py", ".pkl")
    ) or name.lower().startswith(("yolo", "rtdetr"))
