"""List of full-size configs and the TPU slices they are planned for; see `make plans`."""

import sys

from m3djax.plan.shipped import Shipped, main

MAE = "configs/e3d_gpt/mae.py"

PLANS: dict[str, Shipped] = {
    "e3d_gpt_mae_v5e_4x4": Shipped(MAE, "v5e:4x4"),
    "e3d_gpt_mae_v5e_16x16": Shipped(MAE, "v5e:16x16", ("--data.batch-size", "4096")),
    "e3d_gpt_mae_large_v5e_4x8": Shipped("configs/e3d_gpt/mae_large.py", "v5e:4x8"),
    "e3d_gpt_mae_huge_v5e_8x8": Shipped("configs/e3d_gpt/mae_huge.py", "v5e:8x8"),
    "m3d_clip_released_v5e_4x4": Shipped("configs/m3d/clip_released.py", "v5e:4x4"),
    "m3d_clip_v5e_16x16": Shipped("configs/m3d/clip.py", "v5e:16x16"),
    "llama2_7b_v5e_4x4": Shipped("configs/llm/llama2_7b.py", "v5e:4x4"),
    "llama2_7b_lora_v5e_4x4": Shipped("configs/llm/llama2_7b_lora.py", "v5e:4x4"),
    "m3d_instruct_v5e_4x4": Shipped("configs/m3d/instruct.py", "v5e:4x4"),
    "llama2_7b_decode_v5e_4x4": Shipped("configs/llm/llama2_7b_decode.py", "v5e:4x4"),
}

if __name__ == "__main__":
    main(PLANS, sys.argv[1:])
