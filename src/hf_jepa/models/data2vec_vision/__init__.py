from .configuration_data2vec_vision import Data2VecVisionPreTrainingConfig
from .modeling_data2vec_vision import Data2VecVisionForPreTraining

__all__ = ["Data2VecVisionForPreTraining", "Data2VecVisionPreTrainingConfig"]
