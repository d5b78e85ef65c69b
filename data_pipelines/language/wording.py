"""The wordings of conditions and findings in reports, in English and Chinese."""

from __future__ import annotations

IMPRESSIONS = {
    "en": {
        "normal": (
            "normal fundus",
            "healthy fundus, normal retina",
            "no retinal disease, normal fundus",
            "normal eye grounds, unremarkable fundus",
        ),
        "mild diabetic retinopathy": (
            "mild diabetic retinopathy",
            "mild non-proliferative diabetic retinopathy",
            "diabetic retinopathy of mild degree",
            "mild NPDR",
        ),
        "moderate diabetic retinopathy": (
            "moderate diabetic retinopathy",
            "moderate non-proliferative diabetic retinopathy",
            "diabetic retinopathy of moderate degree",
            "moderate NPDR",
        ),
        "severe diabetic retinopathy": (
            "severe diabetic retinopathy",
            "severe non-proliferative diabetic retinopathy",
            "diabetic retinopathy of severe degree",
            "severe NPDR",
        ),
        "proliferative diabetic retinopathy": (
            "proliferative diabetic retinopathy",
            "PDR, proliferative diabetic retinopathy",
            "diabetic retinopathy that has become proliferative",
            "high-risk proliferative diabetic retinopathy",
        ),
        "diabetic macular oedema": (
            "diabetic macular oedema",
            "diabetic macular oedema, clinically significant",
            "DME, diabetic macular oedema",
            "macular oedema due to diabetes",
        ),
        "dry age-related macular degeneration": (
            "dry age-related macular degeneration",
            "dry AMD",
            "non-neovascular, dry age-related macular degeneration",
            "age-related macular degeneration of the dry type",
        ),
        "neovascular age-related macular degeneration": (
            "neovascular age-related macular degeneration",
            "wet AMD, neovascular age-related macular degeneration",
            "exudative neovascular AMD",
            "age-related macular degeneration of the neovascular type",
        ),
        "glaucoma": (
            "glaucoma",
            "glaucomatous optic neuropathy, glaucoma",
            "changes of glaucoma",
            "glaucoma with cupping",
        ),
        "retinal vein occlusion": (
            "retinal vein occlusion",
            "occlusion of a retinal vein",
            "RVO, retinal vein occlusion",
            "vein occlusion of the retina",
        ),
        "retinal detachment": (
            "retinal detachment",
            "rhegmatogenous retinal detachment",
            "detachment of the retina",
            "RD, retinal detachment",
        ),
        "pathologic myopia": (
            "pathologic myopia",
            "high, pathologic myopia",
            "pathologic myopia with degeneration",
            "myopic maculopathy in pathologic myopia",
        ),
        "macular hole": (
            "macular hole",
            "full-thickness macular hole",
            "idiopathic macular hole",
            "hole of the macula",
        ),
        "cataract": (
            "cataract",
            "cataract veiling the fundus",
            "lens opacity, cataract",
            "cataract that blurs the fundus",
        ),
    },
    "zh": {
        "normal": ("正常眼底", "眼底未见异常，正常眼底", "眼底正常", "正常视网膜"),
        "mild diabetic retinopathy": (
            "轻度糖尿病视网膜病变",
            "轻度非增殖期糖尿病视网膜病变",
            "糖尿病视网膜病变（轻度）",
        ),
        "moderate diabetic retinopathy": (
            "中度糖尿病视网膜病变",
            "中度非增殖期糖尿病视网膜病变",
            "糖尿病视网膜病变（中度）",
        ),
        "severe diabetic retinopathy": (
            "重度糖尿病视网膜病变",
            "重度非增殖期糖尿病视网膜病变",
            "糖尿病视网膜病变（重度）",
        ),
        "proliferative diabetic retinopathy": (
            "增殖期糖尿病视网膜病变",
            "增殖性糖尿病视网膜病变",
            "糖尿病视网膜病变（增殖期）",
        ),
        "diabetic macular oedema": ("糖尿病性黄斑水肿", "糖尿病黄斑水肿", "糖尿病引起的黄斑水肿"),
        "dry age-related macular degeneration": (
            "干性年龄相关性黄斑变性",
            "干性黄斑变性",
            "年龄相关性黄斑变性（干性）",
        ),
        "neovascular age-related macular degeneration": (
            "新生血管性年龄相关性黄斑变性",
            "湿性年龄相关性黄斑变性（新生血管性）",
            "年龄相关性黄斑变性（湿性）",
        ),
        "glaucoma": ("青光眼", "青光眼性视神经病变", "青光眼性视盘改变"),
        "retinal vein occlusion": ("视网膜静脉阻塞", "视网膜静脉阻塞（RVO）", "静脉阻塞性视网膜病变，视网膜静脉阻塞"),
        "retinal detachment": ("视网膜脱离", "孔源性视网膜脱离", "视网膜脱离（RD）"),
        "pathologic myopia": ("病理性近视", "高度近视，病理性近视", "病理性近视眼底改变"),
        "macular hole": ("黄斑裂孔", "全层黄斑裂孔", "特发性黄斑裂孔"),
        "cataract": ("白内障", "白内障，眼底窥不清", "晶状体混浊，白内障"),
    },
}


# Wordings of the findings in conditions.FINDINGS.
SIGNS = {
    "en": {
        "microaneurysm": ("microaneurysms", "scattered microaneurysms", "red dots of microaneurysms"),
        "haemorrhage": ("dot and blot haemorrhages", "intraretinal haemorrhages", "blot haemorrhages"),
        "flame haemorrhage": ("flame-shaped haemorrhages", "flame haemorrhages along the nerve fibres"),
        "hard exudate": ("hard exudates", "yellow hard exudates", "waxy lipid exudates"),
        "cotton-wool spot": ("cotton-wool spots", "soft exudates", "fluffy white cotton-wool spots"),
        "drusen": ("drusen", "yellow drusen", "deposits of drusen under the retina"),
        "atrophy": ("patches of chorioretinal atrophy", "areas of atrophy", "pale atrophic patches"),
        "neovascularisation": ("new vessels", "neovascularisation of disc and retina", "fronds of new vessels"),
        "preretinal haemorrhage": ("preretinal haemorrhage", "a boat-shaped preretinal haemorrhage"),
        "subretinal haemorrhage": ("subretinal haemorrhage", "dark blood under the macula", "submacular haemorrhage"),
        "choroidal neovascularisation": (
            "a choroidal neovascular membrane",
            "a grey-yellow neovascular lesion of the macula",
        ),
        "macular oedema": ("macular oedema", "thickening of the macula", "a swollen macula"),
        "macular hole": ("a round red defect of the fovea", "a sharply cut hole with a cuff of fluid"),
        "retinal detachment": ("grey elevated retina in folds", "a bullous sheet of lifted retina"),
        "nerve fibre defect": ("a wedge-shaped nerve fibre layer defect", "loss of the nerve fibre layer"),
        "peripapillary atrophy": ("peripapillary atrophy", "a pale crescent at the disc"),
        "enlarged cup": (
            "an enlarged cup-to-disc ratio of {cup}",
            "deep cupping, C/D {cup}",
            "a disc excavated to {cup}",
        ),
        "disc pallor": ("a pale neural rim", "disc pallor"),
        "disc swelling": ("a swollen disc", "blurred disc margins"),
        "tessellated fundus": ("a tessellated fundus", "visible choroidal vessels"),
        "media opacity": ("hazy media", "a veiled view of vessels and disc"),
        "venous dilation": ("dilated tortuous veins", "engorged veins"),
    },
    "zh": {
        "microaneurysm": ("微血管瘤", "散在微血管瘤", "红色点状微血管瘤"),
        "haemorrhage": ("点片状出血", "视网膜内出血", "斑片状出血"),
        "flame haemorrhage": ("火焰状出血", "沿神经纤维走行的火焰状出血"),
        "hard exudate": ("硬性渗出", "黄色硬性渗出", "蜡黄色脂质渗出"),
        "cotton-wool spot": ("棉绒斑", "软性渗出", "灰白色棉絮斑"),
        "drusen": ("玻璃膜疣", "黄色玻璃膜疣", "视网膜下玻璃膜疣沉积"),
        "atrophy": ("脉络膜视网膜萎缩灶", "萎缩斑", "黄白色萎缩灶"),
        "neovascularisation": ("新生血管", "视盘及视网膜新生血管", "新生血管丛"),
        "preretinal haemorrhage": ("视网膜前出血", "舟状视网膜前出血"),
        "subretinal haemorrhage": ("视网膜下出血", "黄斑下暗红色出血"),
        "choroidal neovascularisation": ("脉络膜新生血管膜", "黄斑区灰黄色新生血管病灶"),
        "macular oedema": ("黄斑水肿", "黄斑区增厚"),
        "macular hole": ("中心凹圆形红色缺损", "边界锐利的裂孔伴周围液体袖套"),
        "retinal detachment": ("视网膜灰白色隆起伴皱褶", "视网膜呈泡状隆起"),
        "nerve fibre defect": ("楔形神经纤维层缺损", "神经纤维层丢失"),
        "peripapillary atrophy": ("视盘周围萎缩", "视盘旁萎缩弧"),
        "enlarged cup": ("杯盘比扩大至{cup}", "视杯加深扩大，C/D {cup}"),
        "disc pallor": ("盘沿色淡", "视盘苍白"),
        "disc swelling": ("视盘水肿", "视盘边界模糊"),
        "tessellated fundus": ("豹纹状眼底", "脉络膜血管透见"),
        "media opacity": ("屈光间质混浊", "血管及视盘影像朦胧"),
        "venous dilation": ("静脉迂曲扩张", "静脉怒张"),
    },
}


# Wordings of findings in negations ("no haemorrhage").
ABSENT = {
    "en": {
        "haemorrhage": "haemorrhage",
        "hard exudate": "hard exudates",
        "drusen": "drusen",
        "macular oedema": "macular oedema",
        "neovascularisation": "new vessels",
        "enlarged cup": "cupping of the disc",
        "retinal detachment": "detachment",
        "microaneurysm": "microaneurysms",
        "cotton-wool spot": "cotton-wool spots",
        "macular hole": "macular hole",
    },
    "zh": {
        "haemorrhage": "出血",
        "hard exudate": "硬性渗出",
        "drusen": "玻璃膜疣",
        "macular oedema": "黄斑水肿",
        "neovascularisation": "新生血管",
        "enlarged cup": "视杯扩大",
        "retinal detachment": "视网膜脱离",
        "microaneurysm": "微血管瘤",
        "cotton-wool spot": "棉绒斑",
        "macular hole": "黄斑裂孔",
    },
}


HEALTHY_BY_MODALITY = {
    "FFA": {
        "en": ("regular filling of vessels, no leakage", "a dark intact foveal avascular zone, no leakage"),
        "zh": ("血管充盈正常，未见渗漏", "黄斑拱环完整，无荧光渗漏"),
    },
    "OCT": {
        "en": ("foveal pit and all layers preserved", "regular foveal contour, no fluid on OCT"),
        "zh": ("中心凹形态正常，各层结构清晰", "黄斑中心凹轮廓正常，未见积液"),
    },
}


HEALTHY = {
    "en": (
        "disc pink with a sharp margin, macula with a clear foveal reflex",
        "vessels of regular calibre, flat retina",
        "disc, macula and vessels are unremarkable",
        "cup-to-disc ratio {cup}, fovea intact",
    ),
    "zh": (
        "视盘色红界清，黄斑中心凹反光可见",
        "血管走行正常，视网膜平伏",
        "视盘、黄斑及血管未见明显异常",
        "杯盘比{cup}，黄斑中心凹完整",
    ),
}


# Wordings for an OCT of a disease that is not visible in OCT.
UNSEEN = {
    "en": ("retinal layers preserved on OCT", "no structural change on OCT"),
    "zh": ("OCT示视网膜各层结构完整", "OCT未见结构改变"),
}


# Signs that are visible only in an angiogram or an OCT: finding -> (English, Chinese).
MODALITY_SIGNS = {
    "FFA": {
        "microaneurysm": ("pinpoint hyperfluorescence", "点状强荧光"),
        "neovascularisation": ("profuse leakage from new vessels", "新生血管明显荧光渗漏"),
        "macular oedema": ("petaloid leakage at the macula", "黄斑区花瓣状荧光渗漏"),
        "choroidal neovascularisation": ("early bright leakage from the membrane", "新生血管膜早期强荧光渗漏"),
        "cotton-wool spot": ("areas of capillary non-perfusion", "毛细血管无灌注区"),
        "haemorrhage": ("blocked fluorescence by blood", "出血遮蔽荧光"),
        "drusen": ("staining of drusen", "玻璃膜疣着染"),
        "atrophy": ("window defects", "透见荧光"),
        "macular hole": ("a small central window defect", "黄斑中心透见荧光"),
        "retinal detachment": ("dim fluorescence over lifted retina", "隆起视网膜处荧光减弱"),
        "disc pallor": ("a hypofluorescent disc", "视盘弱荧光"),
    },
    "OCT": {
        "macular oedema": ("cystoid spaces and a thickened retina on OCT", "OCT示视网膜增厚伴囊样腔隙"),
        "choroidal neovascularisation": (
            "subretinal fluid and a pigment epithelial detachment on OCT",
            "OCT示视网膜下积液及色素上皮脱离",
        ),
        "drusen": ("bumps of the pigment epithelium on OCT", "OCT示色素上皮波浪状隆起"),
        "atrophy": ("loss of outer retina on OCT", "OCT示外层视网膜缺失"),
        "macular hole": ("a full-thickness gap of the fovea on OCT", "OCT示中心凹全层缺损"),
        "retinal detachment": ("retina lifted by subretinal fluid on OCT", "OCT示视网膜神经上皮层脱离"),
        "nerve fibre defect": ("a thin nerve fibre layer on OCT", "OCT示神经纤维层变薄"),
        "hard exudate": ("bright foci in the outer retina on OCT", "OCT示外层高反射点"),
        "tessellated fundus": ("a thin choroid on OCT", "OCT示脉络膜变薄"),
        "media opacity": ("a weak OCT signal", "OCT信号减弱"),
    },
}
