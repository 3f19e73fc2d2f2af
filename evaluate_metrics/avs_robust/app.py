import evaluate
from evaluate.utils import launch_gradio_widget

module = evaluate.load("avs_robust")
launch_gradio_widget(module)
