// Makes "Ascend" a known target of MindSpore's CPU wheel, so that its compiler accepts more than one device.
#include <string>

namespace mindspore {
class MsContext {
 public:
  static void RegisterInitFunc(const std::string &target, void (*initialize)(MsContext *));
};
}  // namespace mindspore

static void do_nothing(mindspore::MsContext *) {}

extern "C" void register_target(const char *name) { mindspore::MsContext::RegisterInitFunc(name, do_nothing); }
