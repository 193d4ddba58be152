/* Of MicroPython's API, what the modules that are written call, declared as there, to compile them without it. */
#include <stddef.h>
#include <stdint.h>

typedef const void *mp_obj_t;
typedef intptr_t mp_int_t;
typedef uintptr_t mp_uint_t;
typedef float mp_float_t;
typedef uint8_t byte;
typedef struct { const void *type; } mp_obj_base_t;
typedef struct { mp_obj_base_t base; size_t len; mp_obj_t items[1]; } mp_obj_tuple_t;
typedef struct { void *buf; size_t len; int typecode; } mp_buffer_info_t;
typedef struct { const void *key, *value; } mp_rom_map_elem_t;
typedef struct { mp_obj_base_t base; const mp_rom_map_elem_t *table; size_t used; } mp_obj_dict_t;
typedef struct { mp_obj_base_t base; mp_obj_dict_t *globals; } mp_obj_module_t;
typedef struct { mp_obj_base_t base; mp_obj_t (*call)(void); } function_0;
typedef struct { mp_obj_base_t base; mp_obj_t (*call)(mp_obj_t); } function_1;
typedef struct { mp_obj_base_t base; mp_obj_t (*call)(mp_obj_t, mp_obj_t); } function_2;
typedef struct { mp_obj_base_t base; mp_obj_t (*call)(mp_obj_t, mp_obj_t, mp_obj_t); } function_3;

#define MICROPY_PY_BUILTINS_FLOAT 1
#define MP_BUFFER_READ 1
#define MP_OBJ_NULL NULL
#define MP_OBJ_STOP_ITERATION NULL
#define MP_OBJ_TO_PTR(object) ((void *)(uintptr_t)(object))
#define MP_OBJ_FROM_PTR(pointer) ((mp_obj_t)(pointer))
#define MP_OBJ_NEW_SMALL_INT(number) ((mp_obj_t)(intptr_t)(number))
#define MP_ERROR_TEXT(text) text
#define MP_ROM_QSTR(name) ((const void *)(intptr_t)(name))
#define MP_ROM_INT(number) ((const void *)(intptr_t)(number))
#define MP_ROM_PTR(pointer) (pointer)
#define MP_DEFINE_CONST_DICT(name, entries) const mp_obj_dict_t name = {{NULL}, entries, sizeof(entries) / sizeof(*entries)}
#define MP_DEFINE_CONST_FUN_OBJ_0(name, function) const function_0 name = {{NULL}, function}
#define MP_DEFINE_CONST_FUN_OBJ_1(name, function) const function_1 name = {{NULL}, function}
#define MP_DEFINE_CONST_FUN_OBJ_2(name, function) const function_2 name = {{NULL}, function}
#define MP_DEFINE_CONST_FUN_OBJ_3(name, function) const function_3 name = {{NULL}, function}
#define MP_REGISTER_MODULE(name, module) extern const mp_obj_module_t module
#define m_new(type, count) ((type *)m_malloc(sizeof(type) * (count)))
#define mp_const_none NULL
enum {
    MP_QSTR___name__, MP_QSTR_INPUTS, MP_QSTR_OUTPUTS, MP_QSTR_MOMENTS, MP_QSTR_predict, MP_QSTR_step, MP_QSTR_reset,
    MP_QSTR_quantize, MP_QSTR_quantize_step,
    MP_QSTR_train_step, MP_QSTR_rewire, MP_QSTR_net
};

extern const mp_obj_base_t mp_type_module, mp_type_ValueError;
void *m_malloc(size_t size);
int mp_get_buffer(mp_obj_t object, mp_buffer_info_t *buffer, mp_uint_t flags);
int mp_obj_is_int(mp_obj_t object);
mp_float_t mp_obj_get_float(mp_obj_t object);
mp_int_t mp_obj_get_int(mp_obj_t object);
mp_int_t mp_obj_get_int_truncated(mp_obj_t object);
mp_obj_t mp_getiter(mp_obj_t object, void *buffer);
mp_obj_t mp_iternext(mp_obj_t items);
mp_obj_t mp_obj_len(mp_obj_t object);
mp_obj_t mp_obj_new_bytes(const byte *bytes, size_t count);
mp_obj_t mp_obj_new_float(mp_float_t number);
mp_obj_t mp_obj_new_tuple(size_t count, const mp_obj_t *items);
void mp_raise_ValueError(const char *text) __attribute__((noreturn));
void mp_raise_msg_varg(const mp_obj_base_t *type, const char *text, ...) __attribute__((noreturn, format(printf, 2, 3)));
